// winograd: forward and grad_input of 3x3 kernels with stride 1, with 36 multiplications for 16 outputs where direct
// convolution has 144. See docs/kernels.md.
//
// F(4x4, 3x3) of Lavin and Gray (arXiv:1509.09308) with the points {0, +-3/4, +-3/2, infinity}. All constants of the
// input and output transforms are exact in binary, and the error is half of that of the points {0, +-1, +-2, infinity}.
//
//   V[plane] = (B^T d B)   6x6 inputs of a tile       [plane][tile][channel]
//   U[plane] = (G g G^T)   3x3 taps                   [plane][channel][lane: output channel]
//   M[plane] = V U         36 small matrix products   [plane][tile][lane]
//   y        = (A^T M A)   4x4 outputs of the tile

namespace winograd {

// M = V U over `channels` input channels, or M += V U if `add`. Calls `meanwhile`, which prefetches, once per plane.
template <class T, class Meanwhile>
void multiply_planes(const T* v, const Stack& v_stack, const T* u, const Stack& u_stack, T* m, const Stack& m_stack,
                     int64_t tiles, int64_t channels, bool add, Meanwhile& meanwhile) {
  const bool wide = m_stack.pitch > Simd<T>::lanes;
  const int64_t no_offset = 0, parts = (tiles - 1) / (wide ? max_rows<2> : max_rows<1>)+1;
  GemmTile<T> product{};
  product.offset = &no_offset, product.runs = 1;
  product.count = m_stack.pitch;
  for (int64_t plane = 0; plane < planes; ++plane) {
    meanwhile();
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = tiles * part / parts, end = tiles * (part + 1) / parts;
      const T* a[max_rows<1>];
      T* c[max_rows<1>];
      for (int64_t i = begin; i < end; ++i) {
        a[i - begin] = v + plane * v_stack.plane + i * v_stack.pitch;
        c[i - begin] = m + plane * m_stack.plane + i * m_stack.pitch;
      }
      // Prefetches the rows of the next product, which follow these.
      const T* next = a[0] + (end - begin) * v_stack.pitch;
      PrefetchRows<T> prefetch;
      if (v_stack.pitch == channels)
        prefetch = {&next, 1, (end - begin) * channels, (channels - 1) / steps_per_prefetch + 1};
      product.a = a, product.c = c, product.prefetch = &prefetch;
      for (int64_t k = 0; k < channels; k += max_reduction) {
        product.length = std::min(max_reduction, channels - k);
        product.b = u + plane * u_stack.plane + k * u_stack.pitch;
        product.from = add || k > 0 ? c : nullptr;
        if (wide) {
          GemmTiles<T, 2>::by_rows[end - begin - 1](product);
        } else {
          GemmTiles<T, 1>::by_rows[end - begin - 1](product);
        }
        for (int64_t i = begin; i < end; ++i) a[i - begin] += product.length;
      }
    }
  }
}

// Sizes that fit the caches.
constexpr int64_t own_v = 384 << 10;   // bytes: V of one task, in L2
constexpr int64_t all_u = 3 << 20;     // bytes: U, computed once and read by all tasks, from L3
constexpr int64_t max_channels = 768;  // maximum input channels of correlate_own_v
constexpr int64_t shared_v = 6 << 20;  // bytes: V, read by all tasks, from L3
constexpr int64_t max_tiles = 112;     // tiles of M, beside a slab of U, in L2
constexpr int64_t slab_channels = 64;  // channels of a slab

// One axis of a phase of a dilated correlation. Outputs `dilation` apart read inputs that are `dilation` apart. Outputs
// offset, offset + dilation, ... are therefore a correlation without dilation of inputs first, first + dilation, ...
struct SparsePhase {
  Axis axis;
  int64_t first;

  SparsePhase(const Axis& dilated, int64_t offset) : axis(dilated) {
    const int64_t D = dilated.dilation, position = dilated.position(offset, 0);
    axis.pad = position >= 0 ? -(position / D) : (-position - 1) / D + 1;
    first = position + axis.pad * D;
    axis.in = dilated.in > first ? (dilated.in - first - 1) / D + 1 : 0;
    axis.out = (dilated.out - offset - 1) / D + 1;
    axis.dilation = 1;
  }
};

// Output channels of a panel of U.
template <class S>
int64_t lanes_per_panel(const Conv& conv) {
  return conv.K_per_group() <= lanes<S> ? lanes<S> : 2 * lanes<S>;
}

// The problem, as shared by correlate_own_v and correlate_shared_v.
template <class S>
struct Problem {
  using T = Acc<S>;

  const Correlation& conv;
  int64_t C, K, NR, panels;  // of a group: input and output channels, lanes of a panel, panels
  const T* bias;             // [group][panel][lane], or null
  const Epilogue& epilogue;

  Problem(const Correlation& conv, const Epilogue& epilogue, Scratch& scratch)
      : conv(conv),
        C(conv.C_per_group()),
        K(conv.K_per_group()),
        NR(lanes_per_panel<S>(conv)),
        panels((K - 1) / NR + 1),
        bias(pack_bias<S>(epilogue, conv.K, K, panels * NR, scratch)),
        epilogue(epilogue) {}

  // Multiplications of one tile and one panel.
  double products() const { return double(planes) * C * NR; }

  // Output channels of a panel.
  int64_t channels(int64_t panel) const { return std::min(NR, K - panel * NR); }

  // Prefetches the outputs of some tiles and a panel for writing, in one call per plane.
  PrefetchPixels<S, true> prefetch(const Tiles& tiles, int64_t group, int64_t panel, S* y) const {
    return {outputs(conv, tiles, group * K + panel * NR, y), 0, channels(panel), planes};
  }

  // Transforms M of some tiles and a panel, applies the epilogue and stores the outputs.
  void write(const Tiles& tiles, const T* m, const Stack& stack, int64_t group, int64_t panel, S* y) const {
    const FusedEpilogue<T> fused{bias ? bias + (group * panels + panel) * NR : nullptr, epilogue.activation,
                                 T(epilogue.slope)};
    write_outputs(conv, tiles, m, stack, group * K + panel * NR, channels(panel), y, fused);
  }
};

// For few weights: U is computed once, and each task computes and keeps V of a few tiles. For groups [begin, end).
template <class S>
void correlate_own_v(const Problem<S>& problem, int64_t begin, int64_t end, const S* x, const S* w, S* y) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const Correlation& conv = problem.conv;
  const int64_t C = problem.C, NR = problem.NR, panels = problem.panels, groups = end - begin;
  const Stack u_stack(C, NR);
  Scratch scratch;
  T* u = scratch.take<T>(groups * panels * u_stack.size());
  parallel_for(groups * panels, 2 * problem.products(), [&](int64_t task) {
    make_u(conv, w, begin + task / panels, task % panels * NR, NR, 0, C, u + task * u_stack.size(), u_stack);
  });
  const int64_t most = NR > L ? 2 * max_rows<2> : 2 * max_rows<1>;
  const Cut cut(conv, std::clamp<int64_t>(own_v / int64_t(sizeof(T)) / planes / C, 1, most));
  // With many threads, tasks get fewer panels, although V of the same tiles is then computed several times.
  const int64_t parts = cut.count() * groups;
  int64_t per_task = panels;
  while (per_task > 1 && parts * ((panels - 1) / per_task + 1) < thread_count()) per_task = (per_task + 1) / 2;
  const int64_t sets = (panels - 1) / per_task + 1;
  const double work = problem.products() * per_task * cut.images * cut.rows * cut.cols;
  parallel_for(parts * sets, work, [&](int64_t task) {
    const int64_t first = task % sets * per_task, part = task / sets;
    const Tiles tiles = cut[part % cut.count()];
    const int64_t group = part / cut.count();  // counted from `begin`
    const Stack v_stack(tiles.count(), (C + L - 1) / L * L), m_stack(tiles.count(), NR);
    Scratch scratch;
    T *v = scratch.take<T>(v_stack.size()), *m = scratch.take<T>(m_stack.size());
    make_v(conv, tiles, (begin + group) * C, C, x, v, v_stack);
    for (int64_t panel = first; panel < std::min(first + per_task, panels); ++panel) {
      auto prefetch = problem.prefetch(tiles, begin + group, panel, y);
      multiply_planes(v, v_stack, u + (group * panels + panel) * u_stack.size(), u_stack, m, m_stack, tiles.count(), C,
                      false, prefetch);
      problem.write(tiles, m, m_stack, begin + group, panel, y);
    }
  });
}

// For many weights: each task computes U of its output channels, one slab of input channels after the other, and all
// tasks share V of many tiles.
template <class S>
void correlate_shared_v(const Problem<S>& problem, int64_t group, const S* x, const S* w, S* y) {
  using T = Acc<S>;
  const Correlation& conv = problem.conv;
  const int64_t C = problem.C, NR = problem.NR;
  const Cut cut(conv, std::clamp<int64_t>(shared_v / int64_t(sizeof(T)) / planes / C, 1, max_tiles));
  const int64_t slabs = (C - 1) / slab_channels + 1;
  Scratch scratch;
  T* v = scratch.take<T>(slabs * Stack(cut.images * cut.rows * cut.cols, slab_channels).size());
  for (int64_t part = 0; part < cut.count(); ++part) {
    const Tiles tiles = cut[part];
    const Stack v_stack(tiles.count(), slab_channels);
    const int64_t rows = tiles.images * tiles.rows;
    parallel_for(rows * slabs, double(planes) * 16 * tiles.cols * slab_channels, [&](int64_t task) {
      const int64_t row = task / slabs, slab = task % slabs, c = slab * slab_channels;
      const Tiles one{tiles.n + row / tiles.rows, 1, tiles.row + row % tiles.rows, 1, tiles.col, tiles.cols};
      make_v(conv, one, group * C + c, std::min(slab_channels, C - c), x,
             v + slab * v_stack.size() + row * tiles.cols * slab_channels, v_stack);
    });
    // With many threads, tasks get fewer tiles (some of the images, or else some of the rows), although U of the same
    // output channels is then computed several times.
    const int64_t lines = tiles.images > 1 ? tiles.images : tiles.rows;
    const int64_t parts = std::clamp<int64_t>((thread_count() - 1) / problem.panels + 1, 1, lines);
    parallel_for(problem.panels * parts, problem.products() * tiles.count() / parts, [&](int64_t task) {
      const int64_t panel = task % problem.panels, part = task / problem.panels;
      const int64_t line = lines * part / parts, count = lines * (part + 1) / parts - line;
      Tiles own = tiles;
      tiles.images > 1 ? (own.n += line, own.images = count) : (own.row += line, own.rows = count);
      const int64_t first = tiles.count() / lines * line;
      const Stack m_stack(own.count(), NR);
      Scratch scratch;
      const Stack u_slab(slab_channels, NR);
      T *u = scratch.take<T>(u_slab.size()), *m = scratch.take<T>(m_stack.size());
      auto prefetch = problem.prefetch(own, group, panel, y);
      const auto wait = [] {};
      for (int64_t slab = 0; slab < slabs; ++slab) {
        const int64_t c = slab * slab_channels, channels = std::min(slab_channels, C - c);
        make_u(conv, w, group, panel * NR, NR, c, channels, u, u_slab);
        const T* v_slab = v + slab * v_stack.size() + first * v_stack.pitch;
        if (slab + 1 < slabs) {
          multiply_planes(v_slab, v_stack, u, u_slab, m, m_stack, own.count(), channels, slab > 0, wait);
        } else {
          multiply_planes(v_slab, v_stack, u, u_slab, m, m_stack, own.count(), channels, slab > 0, prefetch);
        }
      }
      problem.write(own, m, m_stack, group, panel, y);
    });
  }
}

// The number of groups that correlate_own_v computes at once: those whose U fits into all_u. 0 if it supports none, and
// correlate_shared_v computes them.
template <class S>
int64_t groups_together(const Conv& conv) {
  const int64_t C = conv.C_per_group(), NR = lanes_per_panel<S>(conv);
  const int64_t u_bytes = ceil_div(conv.K_per_group(), NR) * Stack(C, NR).size() * int64_t(sizeof(Acc<S>));
  return C <= max_channels ? all_u / u_bytes : 0;
}

// Computes one correlation: phase by phase if it is dilated, else group by group or several groups at once.
template <class S>
void correlate(const Correlation& conv, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  const int64_t row_dilation = conv.rows.dilation, col_dilation = conv.cols.dilation;
  if (row_dilation > 1 || col_dilation > 1) {
    for (int64_t i = 0; i < std::min(row_dilation, conv.rows.out); ++i)
      for (int64_t j = 0; j < std::min(col_dilation, conv.cols.out); ++j) {
        const SparsePhase rows(conv.rows, i), cols(conv.cols, j);
        Correlation phase = conv;
        phase.rows = rows.axis, phase.cols = cols.axis;
        phase.x.h *= row_dilation, phase.x.w *= col_dilation, phase.y.h *= row_dilation, phase.y.w *= col_dilation;
        correlate(phase, x + rows.first * conv.x.h + cols.first * conv.x.w, w, y + i * conv.y.h + j * conv.y.w,
                  epilogue);
      }
    return;
  }
  Scratch scratch;
  const Problem<S> problem(conv, epilogue, scratch);
  if (const int64_t together = groups_together<S>(conv); together > 0) {
    for (int64_t group = 0; group < conv.groups; group += together)
      correlate_own_v(problem, group, std::min(group + together, conv.groups), x, w, y);
  } else {
    for (int64_t group = 0; group < conv.groups; ++group) correlate_shared_v(problem, group, x, w, y);
  }
}

template <class S>
std::string describe(const Conv& conv) {
  const char* const what = groups_together<S>(conv) > 0 ? "each task transforms its inputs, and all share the weights"
                                                        : "each task transforms its weights, and all share the inputs";
  return std::string("F(4x4, 3x3), ") + what;
}

}  // namespace winograd
