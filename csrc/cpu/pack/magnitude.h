// Magnitudes: the bits of absolute values, as integers. They are ordered as the absolute values are, with infinity and
// NaN above all others.

template <class T>
using Magnitude = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T>
Magnitude<T> magnitude(T value) {
  Magnitude<T> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & std::numeric_limits<Magnitude<T>>::max();
}

template <class T>
T value_of(Magnitude<T> bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A vector of magnitudes.
template <class T>
using MagnitudeLanes __attribute__((vector_size(Simd<T>::lanes * sizeof(T)))) = Magnitude<T>;

template <class T>
INLINE MagnitudeLanes<T> magnitudes(typename Simd<T>::V v) {
  return (MagnitudeLanes<T>)v & std::numeric_limits<Magnitude<T>>::max();
}

template <class T>
INLINE MagnitudeLanes<T> larger(MagnitudeLanes<T> a, MagnitudeLanes<T> b) {
  return a > b ? a : b;
}

template <class T>
INLINE Magnitude<T> largest_lane(MagnitudeLanes<T> lanes) {
  Magnitude<T> largest = lanes[0];
  for (int i = 1; i < Simd<T>::lanes; ++i) largest = std::max<Magnitude<T>>(largest, lanes[i]);
  return largest;
}

// The largest magnitude of `count` elements.
template <class T>
INLINE Magnitude<T> largest_magnitude(const T* from, int64_t count) {
  constexpr int L = Simd<T>::lanes;
  MagnitudeLanes<T> even{}, odd{};
  int64_t i = 0;
  for (; i + 2 * L <= count; i += 2 * L) {
    even = larger<T>(even, magnitudes<T>(load(from + i)));
    odd = larger<T>(odd, magnitudes<T>(load(from + i + L)));
  }
  for (; i < count; i += L) even = larger<T>(even, magnitudes<T>(load(from + i, std::min<int64_t>(L, count - i))));
  return largest_lane<T>(larger<T>(even, odd));
}

// The same of `rows` rows that are `pitch` elements apart.
template <class T>
Magnitude<T> largest_magnitude(const T* from, int64_t rows, int64_t count, int64_t pitch) {
  if (count == pitch) return largest_magnitude(from, rows * count);
  Magnitude<T> largest = 0;
  for (int64_t i = 0; i < rows; ++i) largest = std::max(largest, largest_magnitude(from + i * pitch, count));
  return largest;
}
