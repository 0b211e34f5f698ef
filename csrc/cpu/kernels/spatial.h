// spatial: forward and grad_input for few output channels, and for NCHW. See docs/kernels.md.
//
// Lanes are neighbouring output pixels of a row, so that all of them do useful work, however few output channels there
// are. The patch is a plane of pixels for each input channel, and a tap is an offset into it. A register tile is some
// output channels x some vectors of pixels. Tensors whose pixels are contiguous need no transposition.

namespace spatial {

// Rows (output channels) of a register tile of NV vectors: as many as fit into the registers, which hold the
// accumulators, either the broadcast weights or the vectors of pixels, whichever are fewer, and one more vector.
template <int NV>
constexpr int max_rows() {
  int rows = 1;
  while ((rows + 1) * NV + std::min(rows + 1, NV) + 1 <= registers) ++rows;
  return rows;
}

// Vectors of the widest register tile that takes K output channels.
inline int vectors_for(int64_t K) { return K <= max_rows<8>() ? 8 : K <= max_rows<4>() ? 4 : 2; }

// How a correlation of tensors of S is cut into tasks and tiles.
template <class S>
struct Plan {
  static constexpr int64_t patch_bytes = 256 << 10;
  static constexpr int64_t weights_bytes = 4 << 20;
  static constexpr int64_t buffer_bytes = 4 << 20;

  int NV;            // vectors of a register tile
  int64_t tiles;     // into which the output channels of a group are cut
  int64_t channels;  // input channels of a block of the reduction
  bool possible;
  Blocks<S> blocks;

  std::string describe() const {
    return "blocks of " + std::to_string(blocks.pixels()) + " pixels and " + std::to_string(channels) +
           " input channels, tiles of " + std::to_string(NV) + " vectors of pixels";
  }
};

// The layout of a patch as planes: element (i, j) of channel c is at c * plane + i * row + (j % split) * segment +
// j / split. The columns under one tap are contiguous for any stride (`split` is the stride).
template <class S>
struct PlaneLayout {
  int64_t split, segment, row, plane, image;

  PlaneLayout(const Patch& patch, int64_t channels) {
    constexpr int L = lanes<S>;
    split = patch.cols.step;
    segment = (patch.cols.size - 1) / split + 1 + L;  // the last vector reads beyond the row
    row = split * segment;
    plane = (patch.rows.size * row / L | 1) * L + L;  // spreads planes over the cache sets
    image = channels * plane;
  }

  // The offset in the patch of tap t of [c][r][s].
  int64_t offset(const Conv& conv, int64_t t) const {
    const int64_t s = t % conv.cols.kernel * conv.cols.dilation, rc = t / conv.cols.kernel;
    return rc / conv.rows.kernel * plane + rc % conv.rows.kernel * conv.rows.dilation * row + s % split * segment +
           s / split;
  }
};

// The bytes of a block's patches as planes. A stride may be far longer than a row, which then consists mostly of the
// ends of segments.
template <class S>
double planes_bytes(const Conv& conv, const Blocks<S>& blocks, int64_t channels) {
  const Patch patch(conv, {0, 1, 0, blocks.rows, 0, blocks.cols}, 1);
  const double segment = double((patch.cols.size - 1) / patch.cols.step) + 1 + lanes<S>;
  return segment * patch.cols.step * patch.rows.size * channels * blocks.images * sizeof(Acc<S>);
}
constexpr double max_planes_bytes = 8 << 20;

// A correlation of one tap, without stride and padding, becomes one of a single long row if the rows of both tensors
// are contiguous. Other correlations are returned unchanged.
inline Correlation flattened(const Correlation& conv) {
  const auto plain = [](const Axis& axis) {
    return axis.kernel == 1 && axis.stride == 1 && axis.pad == 0 && axis.in == axis.out;
  };
  Correlation flat = conv;
  if (!plain(conv.rows) || !plain(conv.cols) || conv.x.h != conv.cols.in * conv.x.w ||
      conv.y.h != conv.cols.out * conv.y.w)
    return flat;
  flat.cols.in = flat.cols.out = conv.rows.in * conv.cols.in;
  flat.rows.in = flat.rows.out = 1;
  return flat;
}

// Plans a correlation, which must be flattened. Not `possible` if it exceeds the working memory.
template <class S>
Plan<S> plan(const Correlation& conv) {
  constexpr int size = sizeof(Acc<S>);
  using Plan = spatial::Plan<S>;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), taps = conv.rows.kernel * conv.cols.kernel;
  const auto cut = [&](int64_t channels) { return Blocks<S>(conv, 2048, channels, Plan::patch_bytes); };
  int64_t channels = std::max<int64_t>(1, C);
  while (channels > 16 && cut(channels).pixels() < std::min<int64_t>(512, conv.rows.out * conv.cols.out))
    channels = (channels + 1) / 2;
  Plan plan{vectors_for(K), 0, channels, false, cut(channels)};
  const int64_t most = plan.NV == 8 ? max_rows<8>() : plan.NV == 4 ? max_rows<4>() : max_rows<2>();
  plan.tiles = (K - 1) / most + 1;
  // Fewer images per block if they do not fit: whether the plan is possible must not depend on the batch.
  const auto fits = [&] {
    const double vectors = double(plan.blocks.images) * plan.blocks.rows * (plan.blocks.cols / lanes<S> + 1);
    return plan.blocks.patch_bytes <= 2.0 * Plan::patch_bytes &&
           planes_bytes(conv, plan.blocks, channels) <= max_planes_bytes &&
           vectors * K * lanes<S> * size <= Plan::buffer_bytes;
  };
  while (plan.blocks.images > 1 && !fits()) --plan.blocks.images;
  plan.possible = fits() && double(conv.K) * C * taps * size <= Plan::weights_bytes;
  return plan;
}

// The estimated cycles per output pixel, in float32. A multiplication of vectors takes 1.05 cycles, or 1.3 where
// vectors are not aligned and cross cache lines. A copy takes 0.1 per channel, or 0.7 as a transposition, where pixels
// are not contiguous.
inline double cost(double products, bool aligned, const Conv& conv) {
  constexpr int L = Simd<float>::lanes;
  const auto copies = [](const Strides& strides, int64_t channels) { return (strides.w == 1 ? 0.1 : 0.7) * channels; };
  const double filled = double(conv.cols.out) / ((conv.cols.out + L - 1) / L * L);
  return products / L / filled * (aligned ? 1.05 : 1.3) + 8 + copies(conv.x, conv.C_per_group()) +
         copies(conv.y, conv.K_per_group());
}

inline double cost(const Correlation& conv) {
  const double taps = double(conv.rows.kernel) * conv.cols.kernel;
  return cost(taps * conv.C_per_group() * conv.K_per_group(), taps <= 1, conv);
}

// The arguments of spatial_tile. Vector v of pixels of row m (an output channel) is the sum over t of
// w[t * MR + m] * x[at[v] + offset[t]]. Its first count[v] lanes are stored at c[m * pitch + to[v]], or added to the
// values there.
template <class T>
struct SpatialTile {
  const T *x, *w;
  const int64_t *at, *offset;
  int64_t taps;
  T* c;
  int64_t pitch;
  const int64_t *to, *count;
  bool add;       // add to C instead of overwriting it
  const T* bias;  // [row], or null
  const FusedEpilogue<T>* fused;
};

// Computes a register tile of MR output channels x NV vectors of pixels.
template <class T, int MR, int NV>
void spatial_tile(const SpatialTile<T>& product) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes;
  V acc[MR][NV] = {};
  const T *x[NV], *w = product.w;
  unroll<NV>([&](auto v) __attribute__((always_inline)) { x[v] = product.x + product.at[v]; });
  for (int64_t t = 0; t < product.taps; ++t, w += MR) {
    const int64_t offset = product.offset[t];
    if constexpr (MR < NV) {
      V number[MR];
      unroll<MR>([&](auto m) __attribute__((always_inline)) { number[m] = broadcast(w[m]); });
      fold<NV * MR>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
        ((acc[i % MR][i / MR] = fma(number[i % MR], load(x[i / MR] + offset), acc[i % MR][i / MR])), ...);
      });
    } else {
      V pixels[NV];
      unroll<NV>([&](auto v) __attribute__((always_inline)) { pixels[v] = load(x[v] + offset); });
      fold<MR * NV>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
        ((acc[i / NV][i % NV] = fma(broadcast(w[i / NV]), pixels[i % NV], acc[i / NV][i % NV])), ...);
      });
    }
  }
  unroll<MR * NV>([&](auto i) __attribute__((always_inline)) {
    constexpr int m = i / NV, v = i % NV;
    T* c = product.c + m * product.pitch + product.to[v];
    V value = acc[m][v];
    if (product.add) value = value + (product.count[v] == L ? load(c) : load(c, product.count[v]));
    if (product.bias) value = value + broadcast(product.bias[m]);
    if (product.fused) value = (*product.fused)(value, 0);
    if (product.count[v] == L) {
      store(c, value);
    } else {
      store(c, value, product.count[v]);
    }
  });
}

// Minimum rows of a tile of NV vectors. With fewer output channels in all, vectors_for(K) is larger; output channels
// of several tiles are distributed evenly.
template <int NV>
constexpr int least_rows =
    NV == 8 ? 1 : std::min(max_rows<2 * NV>() + 1, NV == 4 ? max_rows<4>() : (max_rows<2>() + 1) / 2);

template <class T, int NV, int... m>
constexpr auto table(std::integer_sequence<int, m...>) {
  return std::array<void (*)(const SpatialTile<T>&), sizeof...(m)>{spatial_tile<T, least_rows<NV> + m, NV>...};
}

// spatial_tile with NV vectors, indexed by the number of rows minus least_rows.
template <class T, int NV>
constexpr auto multiply_table = table<T, NV>(std::make_integer_sequence<int, max_rows<NV>() - least_rows<NV> + 1>());

template <int NV, class T>
INLINE void multiply_rows(const SpatialTile<T>& product, int64_t rows) {
  multiply_table<T, NV>[rows - least_rows<NV>](product);
}

// Fills the planes of image n with channels [c, c + count), and with zeros for the padding.
template <class S>
void read_planes(const Correlation& conv, int64_t n, const Patch& patch, const PlaneLayout<S>& planes, int64_t c,
                 int64_t count, const S* x, Acc<S>* to) {
  const int64_t top = patch.rows.begin(conv.rows), bottom = patch.rows.end(conv.rows);
  const int64_t left = patch.cols.begin(conv.cols), right = std::max(left, patch.cols.end(conv.cols));
  for (int64_t i = 0; i < patch.rows.size; ++i)
    for (int64_t j = 0; j < planes.split; ++j) {
      Acc<S>* segment = to + i * planes.row + j * planes.segment;
      // Elements [begin, end) of this segment, columns j + split * [begin, end) of the patch, are in the input.
      const int64_t begin = (std::max<int64_t>(0, left - j) + planes.split - 1) / planes.split,
                    end = std::max(begin, (std::max<int64_t>(0, right - j) + planes.split - 1) / planes.split);
      const bool exists = i >= top && i < bottom && begin < end;
      for (int64_t k = 0; k < count; ++k) {
        std::fill_n(segment + k * planes.plane, exists ? begin : planes.segment, Acc<S>(0));
        if (exists) std::fill(segment + k * planes.plane + end, segment + k * planes.plane + planes.segment, Acc<S>(0));
      }
      if (!exists) continue;
      const int64_t h = patch.rows.first + i * patch.rows.source_step,
                    w = patch.cols.first + (j + begin * planes.split) * patch.cols.source_step;
      read_tile<S>({x + n * conv.x.n + c * conv.x.c + h * conv.x.h + w * conv.x.w, count, end - begin, conv.x.c,
                    end - begin > 1 ? conv.x.w * patch.cols.source_step * planes.split : conv.x.w},
                   segment + begin, planes.plane);
    }
}

// Computes one correlation, which must be flattened. Tasks: groups x blocks of pixels.
template <class S>
void correlate(const Correlation& conv, const Plan<S>& plan, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), taps = conv.rows.kernel * conv.cols.kernel;
  const int64_t tiles = plan.tiles, blocks = plan.blocks.count();
  const auto first_row = [&](int64_t tile) { return K * tile / tiles; };
  Scratch scratch;

  const T* bias = pack_bias<S>(epilogue, conv.K, conv.K, conv.K, scratch);

  // packed[group][tile][c][r][s][row of the tile]
  T* packed = scratch.take<T>(conv.K * C * taps);
  parallel_for(conv.groups * tiles, double(K) / tiles * C * taps, [&](int64_t task) {
    const int64_t group = task / tiles, k = first_row(task % tiles), MR = first_row(task % tiles + 1) - k;
    T* to = packed + (group * K + k) * C * taps;
    for (int64_t r = 0; r < conv.rows.kernel; ++r)
      for (int64_t s = 0; s < conv.cols.kernel; ++s, to += MR)
        read_tile<S>({w + group * conv.w_group + k * conv.w.n + r * conv.w.h + s * conv.w.w, C, MR, conv.w.c, conv.w.n},
                     to, taps * MR);
  });

  parallel_for(conv.groups * blocks, double(plan.blocks.pixels()) * K * C * taps, [&](int64_t task) {
    Scratch scratch;
    const int64_t group = task / blocks;
    const Block block = plan.blocks[task % blocks];
    const int64_t rows = block.p_end - block.p, cols = block.q_end - block.q, images = block.n_end - block.n;
    const Patch patch(conv, block, 1);
    const PlaneLayout<S> planes(patch, plan.channels);

    // The vectors of output pixels of the block.
    const int64_t across = (cols - 1) / L + 1, vectors = images * rows * across, NV = plan.NV;
    const int64_t sets = (vectors - 1) / NV + 1;
    // Accumulators are stored straight to y, or to a staging buffer. Vector v begins at at[v] in the patch and at to[v]
    // in the result, of which width[v] lanes are stored: none for the vectors that only fill up the last set.
    const bool direct = std::is_same_v<S, T> && conv.y.w == 1 && plan.channels >= C;
    int64_t* at = scratch.take<int64_t>(3 * sets * NV);
    int64_t *to = at + sets * NV, *width = to + sets * NV;
    for (int64_t v = 0; v < sets * NV; ++v) {
      const int64_t i = std::min(v, vectors - 1), q = i % across * L, p = i / across % rows, n = i / across / rows;
      at[v] = n * planes.image + p * patch.rows.step * planes.row + q;
      to[v] = direct ? n * conv.y.n + p * conv.y.h + q : v * L;
      width[v] = !direct ? L : v < vectors ? std::min<int64_t>(L, cols - q) : 0;
    }
    int64_t* offset = scratch.take<int64_t>(plan.channels * taps);
    for (int64_t t = 0; t < plan.channels * taps; ++t) offset[t] = planes.offset(conv, t);
    T* copy = scratch.take<T>(images * planes.image + L);
    const int64_t pitch = direct ? conv.y.c : sets * NV * L;
    S* corner = y + block.n * conv.y.n + group * K * conv.y.c + block.p * conv.y.h + block.q * conv.y.w;
    T* accumulators = direct ? reinterpret_cast<T*>(corner) : scratch.take<T>(K * pitch);

    const FusedEpilogue<T> fused{nullptr, epilogue.activation, T(epilogue.slope)};
    for (int64_t c = 0; c == 0 || c < C; c += plan.channels) {
      const int64_t count = std::min(plan.channels, C - c);
      for (int64_t n = 0; n < images; ++n)
        read_planes(conv, block.n + n, patch, planes, group * C + c, count, x, copy + n * planes.image);
      const bool last = c + plan.channels >= C;
      SpatialTile<T> product{};
      product.x = copy, product.pitch = pitch;
      for (int64_t set = 0; set < sets; ++set)
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t k = first_row(tile), MR = first_row(tile + 1) - k;
          product.at = at + set * NV, product.to = to + set * NV, product.count = width + set * NV;
          product.c = accumulators + k * pitch;
          for (int64_t t = 0; t == 0 || t < count * taps; t += max_reduction) {
            const bool applies_epilogue = last && t + max_reduction >= count * taps;
            product.taps = std::min(max_reduction, count * taps - t);
            product.offset = offset + t, product.w = packed + (group * K + k) * C * taps + (c * taps + t) * MR;
            product.add = c > 0 || t > 0;
            product.bias = applies_epilogue && bias ? bias + group * K + k : nullptr;
            product.fused = applies_epilogue && epilogue.activation != Activation::none ? &fused : nullptr;
            switch (NV) {
              case 8: multiply_rows<8>(product, MR); break;
              case 4: multiply_rows<4>(product, MR); break;
              default: multiply_rows<2>(product, MR);
            }
          }
        }
    }

    if (direct) return;
    const T* from = accumulators;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t p = 0; p < rows; ++p, from += across * L)
        write_tile<S>(from, pitch, {corner + n * conv.y.n + p * conv.y.h, K, cols, conv.y.c, conv.y.w});
  });
}

}  // namespace spatial
