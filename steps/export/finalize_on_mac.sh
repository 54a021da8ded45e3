#!/bin/sh
# Compiles a bundle's packages into the Resources/ folder that Apple's Swift runtime reads. Needs a Mac with Xcode.
# Usage: sh finalize_on_mac.sh [bundle folder]     (default: the folder this script lies in)
set -eu
bundle=$(cd "${1:-$(dirname "$0")}" && pwd)
resources="$bundle/Resources"
command -v xcrun >/dev/null || { echo "xcrun not found: run this on a Mac with Xcode" >&2; exit 1; }
mkdir -p "$resources"

compile() { # <component> <name the runtime looks for> [optional]
    rm -rf "$resources/$2.mlmodelc"
    for package in "$bundle"/Stable_Diffusion_version_*_"$1".mlpackage; do
        if [ ! -d "$package" ]; then
            [ "${3:-}" = optional ] && return 0
            echo "no package of $1 in $bundle" >&2
            exit 1
        fi
        xcrun coremlcompiler compile "$package" "$resources"
        mv "$resources/$(basename "$package" .mlpackage).mlmodelc" "$resources/$2.mlmodelc"
    done
}

# Compiled anew, so that a chunked UNet and a whole one are never there together.
rm -rf "$resources/Unet.mlmodelc" "$resources/UnetChunk1.mlmodelc" "$resources/UnetChunk2.mlmodelc"
compile text_encoder TextEncoder
if ls -d "$bundle"/Stable_Diffusion_version_*_unet_chunk1.mlpackage >/dev/null 2>&1; then
    compile unet_chunk1 UnetChunk1
    compile unet_chunk2 UnetChunk2
else
    compile unet Unet
fi
compile vae_decoder VAEDecoder
compile vae_encoder VAEEncoder optional
compile safety_checker SafetyChecker optional
cp "$bundle/vocab.json" "$bundle/merges.txt" "$resources/"
echo "ready: $resources"
