#!/bin/sh
# Compiles a bundle's packages into the Resources/ folder that Apple's Swift runtime reads. Needs a Mac with Xcode.
# Usage: sh finalize_on_mac.sh [bundle folder]     (default: the folder this script lies in)
set -eu
bundle=$(cd "${1:-$(dirname "$0")}" && pwd)
resources="$bundle/Resources"
command -v xcrun >/dev/null || { echo "xcrun not found: run this on a Mac with Xcode" >&2; exit 1; }
mkdir -p "$resources"

compile() { # <component> <name the runtime looks for>
    for package in "$bundle"/Stable_Diffusion_version_*_"$1".mlpackage; do
        [ -d "$package" ] || { echo "no package of $1 in $bundle" >&2; exit 1; }
        rm -rf "$resources/$2.mlmodelc"
        xcrun coremlcompiler compile "$package" "$resources"
        mv "$resources/$(basename "$package" .mlpackage).mlmodelc" "$resources/$2.mlmodelc"
    done
}

compile text_encoder TextEncoder
compile unet Unet
compile vae_decoder VAEDecoder
cp "$bundle/vocab.json" "$bundle/merges.txt" "$resources/"
echo "ready: $resources"
