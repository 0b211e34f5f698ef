// Checks of tensors that torch's dispatcher passes to the operators.
#pragma once

#include "../conv.h"

#include <torch/csrc/stable/tensor.h>

#include <string>

namespace torchconv {

// As torch prints a dtype in Python: "torch.float32".
std::string dtype_name(torch::headeronly::ScalarType type);

// The dtype of two operands, which must agree in it and in their device. Errors are std::runtime_error.
Dtype check_operands(const char* a_name, const torch::stable::Tensor& a, const char* b_name,
                     const torch::stable::Tensor& b);

}  // namespace torchconv
