// linear: forward and grad_input of a layer with a single output pixel, y[n, k] = sum over c of x[n, c] w[k, c]. See
// docs/kernels.md.
//
// The products of such a layer are few: reading w sets the pace. w is read in place, once for all images of a round,
// and never packed. Where its reductions are contiguous (forward), lanes are elements of the reduction; where its
// outputs are (grad_input, whose w is transposed), lanes are outputs.

namespace linear {

template <class S>
struct Plan {
  static constexpr int64_t block_steps = 128;      // vectors of a block of the reduction, along the lanes
  static constexpr int64_t task_rows = 48;         // rows of w of a task: a block of them stays in L2
  static constexpr int64_t round_images = 1024;    // maximum images of a round
  static constexpr int64_t round_bytes = 4 << 20;  // x, transposed, of a round
  static constexpr int64_t bias_bytes = 16 << 20;  // the packed bias, in scratch memory
  static constexpr int64_t block_rows = 32;        // rows of w of a block of the reduction, across the lanes
  static constexpr int64_t task_sums = 64 << 10;   // elements of the sums of a task: a quarter of L2 (1 MiB)
  static constexpr int64_t max_lanes = 1024;       // outputs of a task, across the lanes

  bool along = false;  // the reduction runs along the lanes
  bool possible = false;

  std::string describe() const {
    return along ? "lanes are elements of the reduction, w is read in place"
                 : "lanes are output channels, w is read in place";
  }
};

template <class S>
Plan<S> plan(const Correlation& conv) {
  const auto is_pixel = [](const Axis& axis) {
    return axis.in == 1 && axis.kernel == 1 && axis.out == 1 && axis.pad == 0;
  };
  const bool along = conv.w.c == 1 && conv.x.c == 1, across = reads_in_place<S> && conv.w.n == 1;
  const double size = sizeof(Acc<S>), least = double(conv.C) * lanes<S> * size;  // bytes of a round of few images
  return {.along = along,
          .possible = conv.groups == 1 && is_pixel(conv.rows) && is_pixel(conv.cols) &&
                      (along || (across && least <= Plan<S>::round_bytes)) && conv.K * size <= Plan<S>::bias_bytes};
}

// Maximum images of a dot_tile.
constexpr int max_images = registers > 16 ? 6 : 3;

// The arguments of dot_tile: c[i * pitch + m] += sum over k < length of w[m][k] * x[i * x_image + k].
template <class S>
struct DotTile {
  const S* const* w;
  const S* x;
  int64_t x_image, length;
  Acc<S>* c;
  int64_t pitch;
};

// Computes a tile of small_k_rows(images) rows of w x `images` images. Adds only the first `rows` rows to C.
template <class S, int images>
void dot_tile(const DotTile<S>& product, int rows) {
  using V = Vector<S>;
  constexpr int L = lanes<S>, MR = small_k_rows(images);
  V acc[images][MR] = {};
  const auto step = [&](int64_t k, auto... count) __attribute__((always_inline)) {
    V w[MR];
    unroll<MR>([&](auto m) __attribute__((always_inline)) { w[m] = load(product.w[m] + k, count...); });
    unroll<images>([&](auto i) __attribute__((always_inline)) {
      const V x = load(product.x + i * product.x_image + k, count...);
      unroll<MR>([&](auto m) __attribute__((always_inline)) { acc[i][m] = fma(x, w[m], acc[i][m]); });
    });
  };
  int64_t k = 0;
  for (; k + L <= product.length; k += L) step(k);
  if (k < product.length) step(k, int(product.length - k));
  Acc<S> totals[images * MR + 2 * L];
  add_lanes<images * MR>([&](auto i) __attribute__((always_inline)) { return acc[i / MR][i % MR]; }, totals);
  for (int i = 0; i < images; ++i)
    for (int m = 0; m < rows; ++m) product.c[i * product.pitch + m] += totals[i * MR + m];
}

template <class S, int... images>
constexpr auto table(std::integer_sequence<int, images...>) {
  return std::array<void (*)(const DotTile<S>&, int), sizeof...(images)>{dot_tile<S, images + 1>...};
}

// dot_tile, indexed by the number of images minus one.
template <class S>
constexpr auto dot_tiles = table<S>(std::make_integer_sequence<int, max_images>());

// The size of equal tasks of `all` lanes or rows, at most `most` and a multiple: several for each thread. No reduction
// depends on it.
inline int64_t task_size(int64_t all, int64_t most, int64_t multiple) {
  return std::clamp(round_up(ceil_div(all, 4 * thread_count()), multiple), multiple, most);
}

// Computes output channels [k, k_end) of images [n, n_end), with lanes along the reduction.
template <class S>
void correlate_along(const Correlation& conv, int64_t k, int64_t k_end, int64_t n, int64_t n_end, const S* x,
                     const S* w, S* y, const FusedEpilogue<Acc<S>>& fused) {
  constexpr int64_t block = Plan<S>::block_steps * lanes<S>;
  const int64_t rows = k_end - k, pitch = round_up(rows, lanes<S>);
  Scratch scratch;
  Acc<S>* sums = scratch.take<Acc<S>>((n_end - n) * pitch);
  std::fill_n(sums, (n_end - n) * pitch, Acc<S>(0));
  for (int64_t c = 0; c < conv.C; c += block)
    for (int64_t i = n; i < n_end;) {
      const int images = int(std::min<int64_t>(max_images, n_end - i)), most = small_k_rows(images);
      for (int64_t m = k; m < k_end; m += most) {
        const int count = int(std::min<int64_t>(most, k_end - m));
        const S* rows_of_w[small_k_rows(1)];
        for (int r = 0; r < most; ++r) rows_of_w[r] = w + (m + std::min(r, count - 1)) * conv.w.n + c;
        dot_tiles<S>[images - 1]({.w = rows_of_w,
                                  .x = x + i * conv.x.n + c,
                                  .x_image = conv.x.n,
                                  .length = std::min(block, conv.C - c),
                                  .c = sums + (i - n) * pitch + m - k,
                                  .pitch = pitch},
                                 count);
      }
      i += images;
    }
  write_tile<S>(sums, pitch, {y + n * conv.y.n + k * conv.y.c, n_end - n, rows, conv.y.n, conv.y.c}, fused);
}

// Computes output channels [k, k_end) of `images` images, with lanes across the reduction. xt is x transposed:
// [channel][image, `pitch` in all]. y and the results begin at the first of these images.
template <class T>
void correlate_across(const Correlation& conv, int64_t k, int64_t k_end, int64_t images, const T* xt, int64_t pitch,
                      const T* w, T* y, const FusedEpilogue<T>& fused) {
  constexpr int L = lanes<T>;
  constexpr int64_t block = Plan<T>::block_rows;
  const int64_t width = round_up(k_end - k, 2 * L), tiles = ceil_div(images, max_rows<2>), start = 0;
  Scratch scratch;
  T* sums = scratch.take<T>(images * width);
  T* tail = scratch.take<T>(block * 2 * L);  // the last lanes of w, which are not whole vectors
  OuterGemmTile<T> product{};
  product.a_offset = product.b_offset = &start;
  product.segments = 1;
  product.a_step = pitch;
  product.pitch = width;
  for (int64_t c = 0; c < conv.C; c += block) {
    product.length = std::min(block, conv.C - c);
    product.add = c > 0;
    for (int64_t lane = 0; lane < width; lane += 2 * L) {
      const T* from = w + c * conv.w.c + k + lane;
      const int64_t count = k_end - k - lane;
      product.b = from;
      product.b_step = conv.w.c;
      if (count < 2 * L) {
        std::fill_n(tail, product.length * 2 * L, T(0));
        read_tile<T>({from, product.length, count, conv.w.c, 1}, tail, 2 * L);
        product.b = tail;
        product.b_step = 2 * L;
      }
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t m = split_begin(images, tiles, tile), rows = split_begin(images, tiles, tile + 1) - m;
        product.a = xt + c * pitch + m;
        product.c = sums + m * width + lane;
        OuterGemmTiles<T, 2>::by_rows[rows - 1](product);
      }
    }
  }
  write_tile<T>(sums, width, {y + k * conv.y.c, images, k_end - k, conv.y.n, conv.y.c}, fused);
}

template <class S>
void correlate(const Correlation& conv, const Plan<S>& plan, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  using Plan = linear::Plan<S>;
  constexpr int L = lanes<S>;
  Scratch scratch;
  const PackedEpilogue<S> packed(epilogue, conv.K, conv.K, conv.K, scratch);
  if (plan.along) {
    const int64_t rows = task_size(conv.K, Plan::task_rows, small_k_rows(int(std::min<int64_t>(conv.N, max_images))));
    const int64_t tasks = ceil_div(conv.K, rows), images = Plan::round_images;
    parallel_for(tasks * ceil_div(conv.N, images), double(rows) * conv.C * std::min(conv.N, images), [&](int64_t task) {
      const int64_t k = task % tasks * rows, n = task / tasks * images;
      correlate_along(conv, k, std::min(k + rows, conv.K), n, std::min(n + images, conv.N), x, w, y, packed.at(k));
    });
  } else if constexpr (reads_in_place<S>) {
    const int64_t fitting = Plan::round_bytes / int64_t(sizeof(S)) / conv.C / L * L;
    const int64_t per_round = std::min({conv.N, fitting, Plan::round_images});
    const int64_t most = std::clamp(Plan::task_sums / per_round / (2 * L) * (2 * L), int64_t(2 * L), Plan::max_lanes);
    const int64_t width = task_size(conv.K, most, 2 * L), pitch = round_up(per_round, L);
    S* xt = scratch.take<S>(conv.C * pitch);
    for (int64_t n = 0; n < conv.N; n += per_round) {
      const int64_t images = std::min(per_round, conv.N - n);
      read_tile<S>({x + n * conv.x.n, conv.C, images, conv.x.c, conv.x.n}, xt, pitch);
      parallel_for(ceil_div(conv.K, width), double(width) * conv.C * images, [&](int64_t task) {
        const int64_t k = task * width;
        correlate_across(conv, k, std::min(k + width, conv.K), images, xt, pitch, w, y + n * conv.y.n, packed.at(k));
      });
    }
  }
}

}  // namespace linear
