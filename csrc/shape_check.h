// The one shape check of all three operators. In 64 bits, with every product and sum checked for overflow: whatever the
// arguments, the result is a Conv whose index arithmetic cannot overflow, or an error that names the argument.
#pragma once

#include "conv.h"

#include <cstdint>
#include <span>
#include <string>

namespace torchconv {

using Sizes = std::span<const int64_t>;

std::string to_string(Sizes sizes);  // "[8, 3, 224, 224]"

struct Geometry {
  Sizes stride;    // vertical, horizontal
  Sizes padding;   // top, bottom, left, right
  Sizes dilation;  // vertical, horizontal
  int64_t groups;
};

// Checks x [N, C, H, W] and w [K, C / groups, R, S] against the geometry; returns the problem, dtype and strides unset.
// Throws std::runtime_error in the words of torch's own convolution where torch has any.
Conv check_forward(Sizes x, Sizes w, const Geometry& geometry);

// The same for y [N, K, P, Q] and w, where x shall be [N, C, H, W] with H, W = input_size.
Conv check_grad_input(Sizes y, Sizes w, Sizes input_size, const Geometry& geometry);

// The same for x and y, where w shall be [K, C / groups, R, S] with R, S = kernel_size.
Conv check_grad_weight(Sizes x, Sizes y, Sizes kernel_size, const Geometry& geometry);

}  // namespace torchconv
