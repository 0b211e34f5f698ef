// grouped without copies: depthwise convolutions in channels_last (NHWC) whose channels fill whole vectors. x is read
// in place.

namespace grouped {

constexpr const char* in_place_description = "x is read in place";

// Whether the address of every window can be computed without overflow, including windows far outside the input.
inline bool has_addresses(const Axis& axis, int64_t stride) {
  const double reach = std::abs(double(axis.pad)) + axis.in + double(axis.dilation) * axis.kernel + axis.stride;
  return reach * std::abs(double(stride)) < 1e12;
}

// Whether the problem is depthwise and the pixels of x and y are whole vectors, so that both can be used in place.
template <class S>
bool in_place(const Conv& conv) {
  return reads_in_place<S> && has_addresses(conv.rows, conv.x.h) && has_addresses(conv.cols, conv.x.w) &&
         conv.groups == conv.C && conv.groups == conv.K && conv.x.c == 1 && conv.y.c == 1 && conv.C % lanes<S> == 0 &&
         (conv.cols.kernel > 1 || conv.cols.stride == 1);
}

// Rows of taps [first, end) lie in the input, for a window at input position `position` and a kernel of any height.
struct TapRows {
  int64_t first, end;

  TapRows(const Axis& axis, int64_t position)
      : first(position >= 0 ? 0 : (-position - 1) / axis.dilation + 1),
        end(position >= axis.in ? 0 : (axis.in - 1 - position) / axis.dilation + 1) {}
};

constexpr int64_t max_cuts = 1 << 18;  // of a row of outputs; its tiles are listed in working memory

// Whether correlate_in_place supports all parts: tiles are compiled for the kernel width and stride of each.
template <class S>
bool can_correlate_in_place(const Parts& parts) {
  for (const Part& part : parts) {
    const Axis& cols = part.conv.cols;
    if (!in_place<S>(part.conv) || cols.out > max_cuts || (cols.kernel > 1 && cols.dilation > 1) ||
        !has_shape<S>(tile_shapes, std::max<int64_t>(1, cols.kernel), cols.stride))
      return false;
  }
  return true;
}

// forward and grad_input: computes all parts of a result, reading x and writing y in place.
template <class S>
void correlate_in_place(const Parts& parts, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const Correlation& conv = parts[0].conv;  // the first one has the most rows
  const Lanes share(conv, L);
  Scratch scratch;
  std::vector<Taps<S, S>> all_taps;
  int64_t taps = 0;
  for (const Part& part : parts) {
    all_taps.emplace_back(part, w, y, share, scratch);
    taps += part.conv.rows.kernel * part.conv.cols.kernel;
  }
  const T* bias = pack_bias<S>(epilogue, conv.K, share.out, L, scratch);  // [vector][lane]
  const bool stream = streams(conv, y, conv.K);

  // Tasks: a few rows of outputs of one image, for all channels and all parts.
  const int64_t rows = std::clamp<int64_t>(conv.rows.out * conv.N / 64 / 2 * 2, 2, 8),
                row_blocks = (conv.rows.out - 1) / rows + 1;
  parallel_for(conv.N * row_blocks, double(rows) * conv.cols.out * (taps + 4) * conv.C, [&](int64_t task) {
    const int64_t n = task / row_blocks, begin = task % row_blocks * rows;
    for (int64_t p = begin; p < begin + rows; p += 2)
      for (const Taps<S, S>& taps : all_taps) {
        const Correlation& part = taps.conv;
        Scratch scratch;
        int64_t no_offset;
        DepthwiseTile<S> tile = taps.tile(part.x.w, part.x.h, 0, part.cols.stride, &no_offset);
        const int64_t w = part.cols.position(0, 0);
        tile.y_row = part.y.h, tile.y_pixel = part.y.w, tile.count = L, tile.stream = stream;
        tile.left = -w, tile.right = part.cols.in - w;
        const RowCuts<S> cuts = taps.cut(tile, part.cols.out, scratch);
        const int64_t end = std::min({p + 2, begin + rows, part.rows.out});
        for (int64_t i = p, made; i < end; i += made) {
          made = taps.row_step > 0 && i + 1 < end ? 2 : 1;
          const int64_t h = part.rows.position(i, 0);
          const TapRows exist(part.rows, h);
          tile.top = exist.first, tile.bottom = exist.end;
          // Prefetches the rows of the next tile. A stride larger than the kernel skips some rows.
          tile.ahead = i + 2 < part.rows.out ? 2 * std::min(part.rows.stride, part.rows.kernel) : 0;
          const S* from = x + n * part.x.n + h * part.x.h + w * part.x.w;
          S* to = taps.y + n * part.y.n + i * part.y.h;
          for (int64_t v = 0; v < share.vectors; ++v) {
            const FusedEpilogue<T> fused{bias ? bias + v * L : nullptr, epilogue.activation, T(epilogue.slope)};
            tile.fused = fused.is_identity() ? nullptr : &fused;
            tile.w = taps.packed + v * taps.size;
            for (int64_t j = 0; j < cuts.count; ++j) run_cut(cuts.cuts[j], made, tile, from + v * L, to + v * L);
          }
        }
      }
    if (stream) finish_streams();
  });
}

// Whether grad_weight_in_place supports the problem.
template <class S>
bool can_accumulate_in_place(const Conv& conv) {
  return in_place<S>(conv) && (conv.cols.kernel == 1 || conv.cols.dilation == 1) &&
         has_shape<S>(gradient_shapes, conv.cols.kernel, conv.cols.stride);
}

// grad_weight, reading x and y in place. Tasks: sets of vectors x chunks of blocks of rows.
template <class S>
void grad_weight_in_place(const Conv& conv, const S* x, const S* y, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const Lanes share(conv, L);
  const int64_t R = conv.rows.kernel, taps = R * conv.cols.kernel, size = taps * L, P = conv.rows.out,
                Q = conv.cols.out;
  const int64_t per_task = std::min<int64_t>(share.vectors, 16), sets = (share.vectors - 1) / per_task + 1;
  const int64_t rows = std::clamp<int64_t>(pixels_at_once / Q, 1, P), row_blocks = (P - 1) / rows + 1;
  const int64_t blocks = conv.N * row_blocks, chunks = weight_chunks<S>(conv, share, sets, blocks);
  const auto* functions = tap_gradient_functions<S>(conv.cols.kernel, conv.cols.stride);
  Scratch scratch;
  T* accumulators = scratch.take<T>(chunks * share.vectors * size);
  parallel_for(sets * chunks, double(conv.N) * P * Q / chunks * (taps + 4) * per_task * L, [&](int64_t task) {
    const int64_t set = task % sets, chunk = task / sets, first = set * per_task,
                  end = std::min(first + per_task, share.vectors);
    T* total = accumulators + chunk * share.vectors * size;
    std::fill_n(total + first * size, (end - first) * size, T(0));
    for (int64_t b = blocks * chunk / chunks; b < blocks * (chunk + 1) / chunks; ++b) {
      const int64_t n = b / row_blocks, begin = b % row_blocks * rows, p_end = std::min(begin + rows, P);
      TapGradients<S> product{};
      product.pixel = conv.x.w, product.row = conv.rows.dilation * conv.x.h,
      product.x_row = conv.rows.stride * conv.x.h;
      product.left = conv.cols.pad, product.right = conv.cols.in + conv.cols.pad;
      product.y_pixel = conv.y.w, product.y_row = conv.y.h, product.cols = Q;
      product.pitch = conv.cols.kernel * L;
      for (int64_t v = first; v < end; ++v) {
        product.accumulators = total + v * size;
        for (int64_t p = begin; p < p_end; p += product.rows) {
          // Merges consecutive rows of output gradients for which the same rows of taps lie in the input.
          const int64_t h = conv.rows.position(p, 0);
          const TapRows exist(conv.rows, h);
          const int64_t r = std::min(exist.first, R), r_end = std::clamp(exist.end, r, R);
          product.rows = 1;
          while (p + product.rows < p_end) {
            const TapRows next(conv.rows, conv.rows.position(p + product.rows, 0));
            if (std::min(next.first, R) != r || std::clamp(next.end, r, R) != r_end) break;
            ++product.rows;
          }
          if (r == r_end) continue;
          product.x = x + n * conv.x.n + h * conv.x.h - conv.cols.pad * conv.x.w + v * L;
          product.y = y + n * conv.y.n + p * conv.y.h + v * L;
          accumulate_rows(functions, product, r, r_end, conv.cols.kernel);
        }
      }
    }
  });
  store_taps(conv, share, accumulators, chunks, w);
}

}  // namespace grouped
