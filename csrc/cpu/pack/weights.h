// Packed weights of gemm and winograd: panels whose lanes are output channels, for the GEMM register tiles, and runs
// whose lanes are elements of the reduction, for small_k_tile.

// Packs the weights of output channels [k, k + NR) of a group, and of its input channels [c, c + channels), as
// [tap][channel, or pair of channels][lane]. Lanes beyond the last output channel are zero. Taps are `tap` elements
// apart; if that is more than they have, the elements between them are not written.
template <class S, class E>
void pack_weights(const Correlation& conv, const S* w, int64_t group, int64_t k, int64_t NR, int64_t c,
                  int64_t channels, E* to, int64_t tap) {
  constexpr int per = values_per<E>;
  const int64_t steps = ceil_div(channels, per), whole = channels / per;
  const int64_t taps = conv.rows.kernel * conv.cols.kernel, count = std::min(NR, conv.K_per_group() - k);
  const S* from = w + group * conv.w_group + k * conv.w.n + c * conv.w.c;
  if (count < NR)
    for (int64_t i = 0; i < taps; ++i) std::fill_n(to + i * tap, steps * NR, E{});
  if (taps > 1 && std::abs(conv.w.w) == 1 && conv.w.h == conv.cols.kernel * conv.w.w && conv.w.n != 1) {
    // The taps of a channel are contiguous, in reverse order in a flipped kernel: copied channel by channel.
    const bool flipped = conv.w.w < 0;
    if (flipped) {
      from += (taps - 1) * conv.w.w;
      to += (taps - 1) * tap;
    }
    for (int64_t i = 0; i < steps; ++i)
      read_elements<S>({from + i * per * conv.w.c, taps, count, 1, conv.w.n}, i < whole ? conv.w.c : no_second,
                       to + i * NR, flipped ? -tap : tap);
  } else {
    for (int64_t r = 0; r < conv.rows.kernel; ++r)
      for (int64_t s = 0; s < conv.cols.kernel; ++s, to += tap) {
        const S* at = from + r * conv.w.h + s * conv.w.w;
        read_elements<S>({at, whole, count, per * conv.w.c, conv.w.n}, conv.w.c, to, NR);
        if (whole < steps)
          read_elements<S>({at + whole * per * conv.w.c, 1, count, 0, conv.w.n}, no_second, to + whole * NR, NR);
      }
  }
}

template <class S, class E>
void pack_weights(const Correlation& conv, const S* w, int64_t group, int64_t k, int64_t NR, int64_t c,
                  int64_t channels, E* to) {
  pack_weights(conv, w, group, k, NR, c, channels, to, ceil_div(channels, values_per<E>) * NR);
}

// Packs the weights of all output channels of a group, and of its input channels [c, c + channels), for small_k_tile:
// runs of `joined` neighbouring taps x channels, as [run][vector of the run][output channel][lane]. Lanes beyond the
// end of a run are zero.
template <class S>
void pack_small_k(const Correlation& conv, const S* w, int64_t group, int64_t joined, int64_t c, int64_t channels,
                  Acc<S>* to) {
  constexpr int L = lanes<S>;
  const int64_t K = conv.K_per_group(), length = joined * channels, padded = small_k_length<Acc<S>>(length);
  const S* from = w + group * conv.w_group + c * conv.w.c;
  for (int64_t run = 0; run < conv.rows.kernel * conv.cols.kernel / std::max<int64_t>(1, joined); ++run)
    for (int64_t i = 0; i < padded; ++i) {
      const int64_t tap = run * joined + i / channels;
      const S* at =
          from + tap / conv.cols.kernel * conv.w.h + tap % conv.cols.kernel * conv.w.w + i % channels * conv.w.c;
      for (int64_t k = 0; k < K; ++k)
        to[(run * padded + i / L * L) * K + k * L + i % L] = i < length ? Acc<S>(at[k * conv.w.n]) : Acc<S>(0);
    }
}
