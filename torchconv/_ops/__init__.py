"""What torch.ops.torchconv's operators need beside their kernels: one module for each part of torch."""
