"""The diffusion process: noise schedule, parameterizations, sampling grid, distillation losses, sampler."""
