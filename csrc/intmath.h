// Integer arithmetic for sizes, which are never negative.
#pragma once

#include <cstdint>

namespace torchconv {

// a / b, rounded up.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// a, rounded up to a multiple of b.
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The first of the elements of part i, where `count` elements are split into `parts` parts of almost equal size. Part i
// ends where part i + 1 begins.
constexpr int64_t split_begin(int64_t count, int64_t parts, int64_t i) { return count * i / parts; }

}  // namespace torchconv
