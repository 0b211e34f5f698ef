// AMX tiles as arrays, for machines without AMX: the functions of csrc/cpu/micro/amx.h that stand for instructions.
// Arithmetic as Intel's manual describes it: a multiplication accumulates the products of the first and of the second
// elements of all pairs, fused, adds both sums, and then adds the result to C.

struct EmulatedTiles {
  bool configured = false;
  alignas(64) char tile[8][16][64];
};
inline EmulatedTiles& emulated_tiles() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}
inline char (&emulated_tile(int tile))[16][64] {
  if (!emulated_tiles().configured) std::abort();  // the instruction would fault
  return emulated_tiles().tile[tile];
}

inline void amx_configure() {
  if (emulated_tiles().configured) std::abort();  // a task did not release its tiles
  emulated_tiles().configured = true;
  std::memset(emulated_tiles().tile, 0, sizeof emulated_tiles().tile);
}
inline void amx_release() { emulated_tiles().configured = false; }

template <int tile>
void amx_zero() {
  std::memset(emulated_tile(tile), 0, 1024);
}
template <int tile>
void amx_load(const void* from, int64_t stride) {
  for (int64_t i = 0; i < 16; ++i) std::memcpy(emulated_tile(tile)[i], static_cast<const char*>(from) + i * stride, 64);
}
template <int tile>
void amx_store(void* to, int64_t stride) {
  for (int64_t i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(to) + i * stride, emulated_tile(tile)[i], 64);
}

OUT_OF_LINE void emulated_multiply(char (&c)[16][64], const char (&a)[16][64], const char (&b)[16][64]) {
  using Floats __attribute__((vector_size(64))) = float;
  const auto value = [](uint32_t bits) { return bits_as<float>(bits); };
  for (int i = 0; i < 16; ++i) {
    Floats sums[2] = {}, total;
    for (int k = 0; k < 16; ++k) {
      uint32_t pair, pairs[16];
      std::memcpy(&pair, &a[i][4 * k], 4);
      std::memcpy(pairs, b[k], 64);
      const float first = value(pair << 16), second = value(pair & 0xffff0000);
      for (int j = 0; j < 16; ++j) {
        sums[0][j] = __builtin_fmaf(first, value(pairs[j] << 16), sums[0][j]);
        sums[1][j] = __builtin_fmaf(second, value(pairs[j] & 0xffff0000), sums[1][j]);
      }
    }
    std::memcpy(&total, c[i], 64);
    total += sums[0] + sums[1];
    std::memcpy(c[i], &total, 64);
  }
}
template <int c, int a, int b>
void amx_multiply() {
  emulated_multiply(emulated_tile(c), emulated_tile(a), emulated_tile(b));
}
