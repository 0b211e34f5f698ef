#include "shape_check.h"

#include <algorithm>
#include <array>
#include <sstream>
#include <stdexcept>

namespace torchconv {

namespace {

std::ostream& operator<<(std::ostream& out, Sizes sizes) {
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  return out << ']';
}

// The message is put together only when the condition fails.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

int64_t multiply(int64_t a, int64_t b, const char* what) {
  int64_t result;
  require(!__builtin_mul_overflow(a, b, &result), what, " overflows 64 bits: ", a, " * ", b);
  return result;
}

int64_t add(int64_t a, int64_t b, const char* what) {
  int64_t result;
  require(!__builtin_add_overflow(a, b, &result), what, " overflows 64 bits: ", a, " + ", b);
  return result;
}

void check_length(const char* name, Sizes values, size_t length, const char* order) {
  require(values.size() == length, name, " must have ", length, " values (", order, "), but got ", values);
}

bool any(Sizes values, bool (*bad)(int64_t)) { return std::any_of(values.begin(), values.end(), bad); }

void check_geometry(const Geometry& g) {
  check_length("stride", g.stride, 2, "vertical, horizontal");
  check_length("padding", g.padding, 4, "top, bottom, left, right");
  check_length("dilation", g.dilation, 2, "vertical, horizontal");
  require(!any(g.padding, [](int64_t v) { return v < 0; }),
          "negative padding is not supported, but got padding=", g.padding);
  require(!any(g.stride, [](int64_t v) { return v <= 0; }),
          "non-positive stride is not supported, but got stride=", g.stride);
  require(!any(g.dilation, [](int64_t v) { return v <= 0; }),
          "dilation should be greater than zero, but got dilation=", g.dilation);
  require(g.groups > 0, "non-positive groups is not supported, but got groups=", g.groups);
}

// Strides and loops multiply sizes even where another size is 0, so that one counts as 1 here.
void check_bytes(const char* name, Sizes sizes) {
  int64_t bytes = sizeof(double);
  for (int64_t size : sizes)
    require(!__builtin_mul_overflow(bytes, size > 1 ? size : 1, &bytes), name, " of size ", sizes,
            " is too large: its bytes overflow 64 bits");
}

// `out` is left to the caller: it needs both axes for its message.
Axis make_axis(int64_t in, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad) {
  return Axis{in, kernel, 0, stride, dilation, pad};
}

int64_t window(const Axis& axis) {
  return add(multiply(axis.dilation, axis.kernel - 1, "dilation * (kernel size - 1)"), 1, "the dilated kernel size");
}

// x and w already agree in their channels.
Conv make_conv(Sizes x, Sizes w, const Geometry& g) {
  require(w[2] > 0 && w[3] > 0, "kernel size should be greater than zero, but got weight of size ", w);

  Conv conv{};
  conv.N = x[0];
  conv.C = x[1];
  conv.K = w[0];
  conv.groups = g.groups;
  conv.rows = make_axis(x[2], w[2], g.stride[0], g.dilation[0], g.padding[0]);
  conv.cols = make_axis(x[3], w[3], g.stride[1], g.dilation[1], g.padding[2]);

  const char* padded = "the padded input size";
  const int64_t height = add(add(x[2], g.padding[0], padded), g.padding[1], padded), kernel_height = window(conv.rows);
  const int64_t width = add(add(x[3], g.padding[2], padded), g.padding[3], padded), kernel_width = window(conv.cols);
  require(kernel_height <= height && kernel_width <= width, "Calculated padded input size per channel: (", height,
          " x ", width, "). Kernel size: (", kernel_height, " x ", kernel_width,
          "). Kernel size can't be greater than actual input size");
  conv.rows.out = (height - kernel_height) / g.stride[0] + 1;
  conv.cols.out = (width - kernel_width) / g.stride[1] + 1;

  // The stride of a single output is never used, and may be so large that its multiples overflow.
  if (conv.rows.out == 1) conv.rows.stride = 1;
  if (conv.cols.out == 1) conv.cols.stride = 1;
  // The same of the dilation of a single tap.
  if (conv.rows.kernel == 1) conv.rows.dilation = 1;
  if (conv.cols.kernel == 1) conv.cols.dilation = 1;

  check_bytes("input", x);
  check_bytes("weight", w);
  check_bytes("output", std::array{conv.N, conv.K, conv.rows.out, conv.cols.out});
  return conv;
}

void check_y(const Conv& conv, Sizes y) {
  const std::array expected{conv.N, conv.K, conv.rows.out, conv.cols.out};
  require(std::ranges::equal(y, expected), "expected the gradient of the output to be of size ", Sizes(expected),
          ", as the other sizes imply, but got ", y);
}

void check_groups(Sizes w, int64_t groups) {
  require(w[0] >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
          " at dimension 0, but got weight of size ", w, " instead");
  require(w[0] % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ", groups,
          " at dimension 0, but got weight of size ", w, " instead");
}

void check_dimensions(const char* name, Sizes sizes) {
  require(sizes.size() == 4, "expected ", name, " to have 4 dimensions, but got size ", sizes);
}

}  // namespace

std::string to_string(Sizes sizes) {
  std::ostringstream text;
  text << sizes;
  return text.str();
}

Conv check_forward(Sizes x, Sizes w, const Geometry& g) {
  check_geometry(g);
  require(x.size() == w.size(), "Expected ", w.size(), "-dimensional input for ", w.size(), "-dimensional weight ", w,
          ", but got ", x.size(), "-dimensional input of size ", x, " instead");
  check_dimensions("input", x);
  check_groups(w, g.groups);
  const int64_t channels = multiply(w[1], g.groups, "groups * channels per group");
  require(x[1] == channels, "Given groups=", g.groups, ", weight of size ", w, ", expected input", x, " to have ",
          channels, " channels, but got ", x[1], " channels instead");
  return make_conv(x, w, g);
}

Conv check_grad_input(Sizes y, Sizes w, Sizes input_size, const Geometry& g) {
  check_geometry(g);
  check_dimensions("the gradient of the output", y);
  check_dimensions("weight", w);
  check_length("input_size", input_size, 2, "height, width");
  require(input_size[0] >= 0 && input_size[1] >= 0, "input_size must not be negative, but got ", input_size);
  check_groups(w, g.groups);
  const int64_t channels = multiply(w[1], g.groups, "groups * channels per group");
  const Conv conv = make_conv(std::array{y[0], channels, input_size[0], input_size[1]}, w, g);
  check_y(conv, y);
  return conv;
}

Conv check_grad_weight(Sizes x, Sizes y, Sizes kernel_size, const Geometry& g) {
  check_geometry(g);
  check_dimensions("input", x);
  check_dimensions("the gradient of the output", y);
  check_length("kernel_size", kernel_size, 2, "height, width");
  require(x[1] % g.groups == 0, "Given groups=", g.groups, ", expected input channels to be divisible by ", g.groups,
          ", but got input of size ", x, " instead");
  const std::array w{y[1], x[1] / g.groups, kernel_size[0], kernel_size[1]};
  check_groups(w, g.groups);
  const Conv conv = make_conv(x, w, g);
  check_y(conv, y);
  return conv;
}

}  // namespace torchconv
