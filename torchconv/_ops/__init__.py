"""The operators' registrations, one module for each part of torch: autograd, fake tensors, vmap, and so on."""
