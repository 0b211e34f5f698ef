// cuda.sm80.gemm: which kernel of gemm.cuh and gemm_weight.cuh a problem gets, and its launch.
#include "../correlation.h"
#include "gemm.cuh"
#include "gemm_weight.cuh"
#include "launch.cuh"
#include "rows.cuh"

namespace torchconv::cuda {

namespace {

constexpr int64_t blocks_of_device = 132;  // about as many as run at a time; a constant, lest results depend on it

// Packed weights have lines of zeros. Problems that would have many are left to others.
constexpr int64_t most_zeros = 16 << 20;

template <class Math, template <class> class Reader, int BN>
void launch_correlate(const Correlation& conv, Product product, const typename Math::Number* x,
                      const typename Math::Number* w, typename Math::Number* y) {
  using T = typename Math::Number;
  product.packed_rows = divide_up(product.K, BN) * BN;
  product.packed_columns = divide_up(product.x.width(), depth<T>) * depth<T>;
  const Scratch packed(product.packed_size() * sizeof(T)), taps(product.tap_count<T>() * sizeof(Tap));
  launch("pack_weights", conv, pack_weights<T>,
         std::min(divide_up(product.packed_size(), threads), 8 * blocks_of_device), threads, 0, product, w,
         packed.as<T>(), taps.as<Tap>());
  launch("correlate", conv, correlate<Math, Reader, BN>,
         divide_up(product.pixels, tile_rows) * (product.packed_rows / BN) * product.groups, threads,
         Shared<Math, BN>::bytes, product, x, packed.as<T>(), taps.as<Tap>(), y);
}

template <class Math, template <class> class Reader>
void choose_width(const Correlation& conv, const Product& product, const typename Math::Number* x,
                  const typename Math::Number* w, typename Math::Number* y) {
  const int64_t tiles = divide_up(product.pixels, tile_rows) * product.groups;
  const bool wide = product.K > 64 && tiles * divide_up(product.K, 128) >= blocks_of_device;
  if (product.K <= 32) return launch_correlate<Math, Reader, 32>(conv, product, x, w, y);
  if constexpr (sizeof(typename Math::Number) < 8)
    if (wide) return launch_correlate<Math, Reader, 128>(conv, product, x, w, y);
  launch_correlate<Math, Reader, 64>(conv, product, x, w, y);
}

template <class Math>
void correlate_parts(const Parts& parts, const void* x_, const void* w_, void* y_, const Epilogue& epilogue) {
  using T = typename Math::Number;
  for (const Part& part : parts) {
    const Correlation& conv = part.conv;
    const auto *x = static_cast<const T*>(x_), *w = static_cast<const T*>(w_) + part.w_offset;
    T* y = static_cast<T*>(y_) + part.y_offset;
    Product product{};
    product.x = gather(conv.rows, conv.cols, conv.C_per_group(), conv.x);
    product.P = conv.rows.out, product.Q = conv.cols.out, product.K = conv.K_per_group(), product.groups = conv.groups;
    product.pixels = conv.N * conv.rows.out * conv.cols.out;
    product.y = conv.y, product.w = conv.w, product.w_group = conv.w_group;
    product.y_vectors = has_vectors<T>(y, conv.y, product.K);
    product.epilogue = epilogue;
    if (has_vectors<T>(x, conv.x, product.x.C))
      choose_width<Math, VectorReader>(conv, product, x, w, y);
    else
      choose_width<Math, NumberReader>(conv, product, x, w, y);
  }
}

template <class Math, bool y_vectors, bool x_vectors, int BN>
void launch_weight(const Conv& conv, WeightProduct product, const typename Math::Number* x,
                   const typename Math::Number* y, typename Math::Number* w) {
  using T = typename Math::Number;
  using Sum = typename Math::Sum;
  product.rows = divide_up(product.y.C, tile_rows), product.columns = divide_up(product.x.width(), BN);
  const int64_t tiles = int64_t(product.rows) * product.columns * product.groups;

  // Enough chunks to fill the device and to keep sums short; few enough that their sums take 64 MiB at most, or as much
  // as one copy of the weights. Each of them, whole tiles of pixels.
  constexpr int64_t longest = 1 << 15, most_bytes = 64 << 20;
  const int64_t wanted = std::max(divide_up(2 * blocks_of_device, tiles), divide_up(product.pixel_count, longest));
  const int64_t most = std::max<int64_t>(1, most_bytes / int64_t(sizeof(Sum)) / product.sums_per_chunk());
  const int64_t pieces = divide_up(product.pixel_count, 8 * depth<T>);
  product.chunk_pixels = divide_up(pieces, std::min({wanted, most, pieces})) * 8 * depth<T>;
  product.chunks = divide_up(product.pixel_count, product.chunk_pixels);

  const Scratch sums(product.chunks * product.sums_per_chunk() * sizeof(Sum));
  launch("correlate_weight", conv, correlate_weight<Math, y_vectors, x_vectors, BN>, tiles * product.chunks, threads,
         stages * (Columns<T, tile_rows>::bytes() + Columns<T, BN>::bytes()), product, y, x, sums.as<Sum>());
  launch("add_chunks", conv, add_chunks<T, Sum>,
         std::min(divide_up(product.sums_per_chunk(), threads), 8 * blocks_of_device), threads, 0, product,
         static_cast<const Sum*>(sums.as<Sum>()), w);
}

template <class Math>
void grad_weight_of(const Conv& conv, const void* x_, const void* y_, void* w_) {
  using T = typename Math::Number;
  const auto *x = static_cast<const T*>(x_), *y = static_cast<const T*>(y_);
  auto* w = static_cast<T*>(w_);
  WeightProduct product{};
  const Axis rows{conv.rows.out, 1, conv.rows.out, 1, 1, 0}, cols{conv.cols.out, 1, conv.cols.out, 1, 1, 0};
  product.y = gather(rows, cols, conv.K_per_group(), conv.y);
  product.x = gather(conv.rows, conv.cols, conv.C_per_group(), conv.x);
  product.groups = conv.groups;
  product.pixels = counter(conv.rows.out, conv.cols.out, depth<T>);
  product.y_walk = walk(product.y, product.pixels), product.x_walk = walk(product.x, product.pixels);
  product.pixel_count = conv.N * conv.rows.out * conv.cols.out;
  product.w = conv.w;
  constexpr int BN = sizeof(T) < 8 ? 128 : 64;
  const bool y_vectors = has_vectors<T>(y, conv.y, product.y.C), x_vectors = has_vectors<T>(x, conv.x, product.x.C);
  if (y_vectors && x_vectors) return launch_weight<Math, true, true, BN>(conv, product, x, y, w);
  if (y_vectors) return launch_weight<Math, true, false, BN>(conv, product, x, y, w);
  launch_weight<Math, false, false, BN>(conv, product, x, y, w);
}

// Calls body.template operator()<Math>() for the problem's dtype.
template <class Body>
void with_math(const Conv& conv, const Body& body) {
  switch (conv.dtype) {
    case Dtype::bfloat16: return body.template operator()<TensorMath<c10::BFloat16>>();
    case Dtype::float16: return body.template operator()<TensorMath<c10::Half>>();
    case Dtype::float64: return body.template operator()<DoubleMath>();
    case Dtype::float32:
      if (conv.tf32) return body.template operator()<TensorMath<float>>();
      return body.template operator()<FloatMath>();
  }
}

void forward(const Conv& conv, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  with_math(conv, [&]<class Math>() { correlate_parts<Math>(forward_parts(conv), x, w, y, epilogue); });
}

void grad_input(const Conv& conv, const void* y, const void* w, void* x) {
  with_math(conv, [&]<class Math>() { correlate_parts<Math>(grad_input_parts(conv), y, w, x, {}); });
}

void grad_weight(const Conv& conv, const void* x, const void* y, void* w) {
  with_math(conv, [&]<class Math>() { grad_weight_of<Math>(conv, x, y, w); });
}

bool supports(const Conv& conv, Op op) {
  if (!fits(conv) || is_empty(conv) || (op == Op::grad_input && grad_input_phases(conv) > 64)) return false;
  const double taps = double(conv.rows.kernel) * conv.cols.kernel, C = conv.C_per_group(), K = conv.K_per_group();
  if (op == Op::grad_weight) {
    const double outputs = double(conv.N) * conv.rows.out * conv.cols.out;
    return outputs < 1 << 30 &&
           (outputs / 512 + 1) * conv.groups * divide_up(K, tile_rows) * divide_up(taps * C, 64) < most_blocks;
  }
  const bool forward = op == Op::forward;
  const double in = forward ? C : K, out = forward ? K : C;
  const double packed = conv.groups * divide_up(out, 32) * 32.0 * (taps * in + 32);
  const double pixels =
      double(conv.N) * (forward ? conv.rows.out : conv.rows.in) * (forward ? conv.cols.out : conv.cols.in);
  return packed <= 2 * taps * conv.C * K + most_zeros &&
         (pixels / tile_rows + 1) * divide_up(out, 32) * conv.groups < most_blocks;
}

bool suits(const Conv&, Op) { return true; }

}  // namespace

Implementation sm80_gemm() {
  Implementation row;
  row.name = "cuda.sm80.gemm";
  row.device = Device::cuda;
  row.available = has_sm80;
  row.supports = supports;
  row.suits = suits;
  row.does = "sizes below 2^30, up to 64 phases of a stride, and groups whose weights it can pack";
  row.is_for = "every problem";
  row.forward = forward, row.grad_input = grad_input, row.grad_weight = grad_weight;
  return row;
}

}  // namespace torchconv::cuda
