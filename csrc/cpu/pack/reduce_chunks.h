// The last step of a reduction that was split into chunks, each with accumulators of its own.

// Adds the accumulators of all chunks, in order, to those of the first. `size` is a multiple of the vector length;
// `pitch` is the number of elements from one chunk to the next.
template <class T>
INLINE void reduce_chunks(T* accumulators, int64_t size, int64_t chunks, int64_t pitch) {
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < size; i += Simd<T>::lanes)
      store(accumulators + i, load(accumulators + i) + load(accumulators + chunk * pitch + i));
}
