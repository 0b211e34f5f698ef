// Products of two tiles in shared memory by a block of 8 warps, each of which has WM x 32 of the sums.
//
// A tile has 64 bytes of the reduction for each of its lines (rows of A, columns of B). Lines keeps the reduction
// together, as a pixel's channels lie in memory; Columns keeps the lines together, for sums over pixels.
#pragma once

#include "ptx.cuh"

#include <type_traits>

namespace torchconv::cuda {

constexpr int threads = 256;  // of a block
constexpr int tile_rows = 128;

template <class T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
constexpr int vector_size = 16 / sizeof(T);  // elements
template <class T>
constexpr int depth = 64 / sizeof(T);  // of a tile

// [line][k]. The four vectors of a line change places, so that those of eight lines are on different banks.
template <class T>
struct Lines {
  static constexpr int bytes(int lines) { return lines * 64; }
  T* base;

  DEVICE T* vector(int line, int i) const { return base + line * depth<T> + (i ^ (line >> 1 & 3)) * vector_size<T>; }
  DEVICE const T& at(int line, int k) const { return vector(line, k / vector_size<T>)[k % vector_size<T>]; }
};

// [k][line], with a gap after each k for the same reason.
template <class T, int count>
struct Columns {
  static constexpr int pitch = count + (sizeof(T) == 2 ? 16 : 32) / int(sizeof(T));
  static constexpr int bytes() { return depth<T> * pitch * int(sizeof(T)); }
  T* base;

  DEVICE T* vector(int k, int i) const { return base + k * pitch + i * vector_size<T>; }
  DEVICE const T& at(int line, int k) const { return base[k * pitch + line]; }
};

// bfloat16, float16, and float32 rounded to TF32, on tensor cores.
template <class T>
struct TensorMath {
  using Number = T;
  using Sum = float;
  static constexpr int blocks = 2;  // on a processor
  static constexpr bool rounds = std::is_same_v<T, float>;
  template <int WM>
  struct Sums {
    float c[WM / 16][4][4];
  };

  // Four matrices of 8 lines x 16 bytes: lines from `line` and `line` + 8 on, vectors i and i + 1. The second matrix is
  // the one with the other lines (A), or with the other vector (B).
  static DEVICE void load(uint32_t (&to)[4], const Lines<T>& tile, int line, int i, bool lines_first, int lane) {
    const int matrix = lane / 8, second = matrix % 2, third = matrix / 2;
    ptx::load_matrices(
        to, tile.vector(line + (lines_first ? second : third) * 8 + lane % 8, i + (lines_first ? third : second)));
    round(to);
  }
  template <int count>
  static DEVICE void load(uint32_t (&to)[4], const Columns<T, count>& tile, int line, int i, bool lines_first,
                          int lane) {
    if constexpr (rounds) {
      UNROLL (int j = 0; j < 4; ++j) {
        const int second = j % 2, third = j / 2;
        to[j] = ptx::bits(tile.at(line + lane / 4 + (lines_first ? second : third) * 8,
                                  (i + (lines_first ? third : second)) * vector_size<T> + lane % 4));
      }
      round(to);
    } else {
      const int matrix = lane / 8, second = matrix % 2, third = matrix / 2;
      ptx::load_matrices_transposed(to, tile.vector((i + (lines_first ? third : second)) * 8 + lane % 8,
                                                    line / 8 + (lines_first ? second : third)));
    }
  }
  static DEVICE void round(uint32_t (&bits)[4]) {
    if constexpr (rounds)
      UNROLL (int j = 0; j < 4; ++j) bits[j] = ptx::to_tf32(ptx::number(bits[j]));
  }

  template <int WM, class A, class B>
  static DEVICE void multiply(Sums<WM>& sums, const A& a_tile, int a_line, const B& b_tile, int b_line, int lane) {
    UNROLL (int i = 0; i < 4; i += 2) {
      uint32_t b[2][4];
      UNROLL (int j = 0; j < 2; ++j) load(b[j], b_tile, b_line + j * 16, i, false, lane);
      UNROLL (int m = 0; m < WM / 16; ++m) {
        uint32_t a[4];
        load(a, a_tile, a_line + m * 16, i, true, lane);
        UNROLL (int j = 0; j < 4; ++j) {
          const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          ptx::multiply(sums.c[m][j], a, column, T{});
        }
      }
    }
  }

  // Calls body(row, column, sum) for each sum of this thread.
  template <class, int WM, class Body>
  static DEVICE void each(Sums<WM>& sums, int lane, const Body& body) {
    UNROLL (int m = 0; m < WM / 16; ++m)
      UNROLL (int j = 0; j < 4; ++j)
        UNROLL (int e = 0; e < 4; ++e)
          body(m * 16 + e / 2 * 8 + lane / 4, j * 8 + lane % 4 * 2 + e % 2, sums.c[m][j][e]);
  }
};

// float32 at full precision: each thread has WM / 8 x 8 of the sums.
struct FloatMath {
  using Number = float;
  using Sum = float;
  static constexpr int blocks = 1;
  template <int WM>
  struct Sums {
    float c[WM / 8][8];
  };
  struct alignas(16) Four {
    float at[4];
  };
  static DEVICE Four read(const float* from) { return *reinterpret_cast<const Four*>(from); }

  // Lines: rows lane / 4 + 8 i, columns lane % 4 + 4 j, and four steps of the reduction at a time.
  template <int WM>
  static DEVICE void multiply(Sums<WM>& sums, const Lines<float>& a_tile, int a_line, const Lines<float>& b_tile,
                              int b_line, int lane) {
    UNROLL (int i = 0; i < 4; ++i) {
      Four a[WM / 8];
      UNROLL (int m = 0; m < WM / 8; ++m) a[m] = read(a_tile.vector(a_line + lane / 4 + 8 * m, i));
      UNROLL (int j = 0; j < 8; ++j) {
        const Four b = read(b_tile.vector(b_line + lane % 4 + 4 * j, i));
        UNROLL (int k = 0; k < 4; ++k)
          UNROLL (int m = 0; m < WM / 8; ++m) sums.c[m][j] += a[m].at[k] * b.at[k];
      }
    }
  }
  // Columns: rows and columns in fours.
  template <int WM, int M, int N>
  static DEVICE void multiply(Sums<WM>& sums, const Columns<float, M>& a_tile, int a_line,
                              const Columns<float, N>& b_tile, int b_line, int lane) {
    UNROLL (int k = 0; k < depth<float>; ++k) {
      Four a[WM / 32], b[2];
      UNROLL (int m = 0; m < WM / 32; ++m) a[m] = read(&a_tile.at(a_line + lane / 4 * 4 + 32 * m, k));
      UNROLL (int j = 0; j < 2; ++j) b[j] = read(&b_tile.at(b_line + lane % 4 * 4 + 16 * j, k));
      UNROLL (int m = 0; m < WM / 8; ++m)
        UNROLL (int j = 0; j < 8; ++j) sums.c[m][j] += a[m / 4].at[m % 4] * b[j / 4].at[j % 4];
    }
  }

  template <class Tile, int WM, class Body>
  static DEVICE void each(Sums<WM>& sums, int lane, const Body& body) {
    constexpr bool lines = std::is_same_v<Tile, Lines<float>>;
    UNROLL (int m = 0; m < WM / 8; ++m)
      UNROLL (int j = 0; j < 8; ++j)
        if constexpr (lines)
          body(lane / 4 + 8 * m, lane % 4 + 4 * j, sums.c[m][j]);
        else
          body(lane / 4 * 4 + m % 4 + m / 4 * 32, lane % 4 * 4 + j % 4 + j / 4 * 16, sums.c[m][j]);
  }
};

// float64, on tensor cores.
struct DoubleMath {
  using Number = double;
  using Sum = double;
  static constexpr int blocks = 2;
  template <int WM>
  struct Sums {
    double c[WM / 8][4][2];
  };

  template <int WM, class A, class B>
  static DEVICE void multiply(Sums<WM>& sums, const A& a_tile, int a_line, const B& b_tile, int b_line, int lane) {
    UNROLL (int k = 0; k < depth<double>; k += 4) {
      double b[4];
      UNROLL (int j = 0; j < 4; ++j) b[j] = b_tile.at(b_line + j * 8 + lane / 4, k + lane % 4);
      UNROLL (int m = 0; m < WM / 8; ++m) {
        const double a = a_tile.at(a_line + m * 8 + lane / 4, k + lane % 4);
        UNROLL (int j = 0; j < 4; ++j) ptx::multiply(sums.c[m][j], a, b[j]);
      }
    }
  }

  template <class, int WM, class Body>
  static DEVICE void each(Sums<WM>& sums, int lane, const Body& body) {
    UNROLL (int m = 0; m < WM / 8; ++m)
      UNROLL (int j = 0; j < 4; ++j)
        UNROLL (int e = 0; e < 2; ++e) body(m * 8 + lane / 4, j * 8 + lane % 4 * 2 + e, sums.c[m][j][e]);
  }
};

// The part of a tile of 128 x BN that a warp has.
template <int BN>
struct WarpTile {
  static constexpr int rows = tile_rows * BN / 32 / 8;  // WM
  static DEVICE int row(int warp) { return warp / (BN / 32) * rows; }
  static DEVICE int column(int warp) { return warp % (BN / 32) * 32; }
};

}  // namespace torchconv::cuda
