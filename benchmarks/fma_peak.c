/* The peak rate of one thread: independent chains of multiply-adds of vectors, in registers only. measure.py compiles
   it for the machine that it runs on. */
#include <stdint.h>

#if defined(__AVX512F__)
enum { vector_bytes = 64 };
#elif defined(__AVX__)
enum { vector_bytes = 32 };
#else
enum { vector_bytes = 16 };
#endif
typedef float Vector __attribute__((vector_size(vector_bytes)));

/* Twelve chains hide the latency of two units of 4 cycles each. They are variables, since an array would lie in memory. */
#define CHAINS(action) \
  action(0) action(1) action(2) action(3) action(4) action(5) action(6) action(7) action(8) action(9) action(10) action(11)
#define START(i) Vector sum##i = factor * (i + 3); /* not 1, which the steps would not change */
#define STEP(i) sum##i = sum##i * factor + factor;
#define USE(i) __asm__ volatile("" : : "g"(sum##i[0]));
#define ONE(i) +1

/* Runs `steps` multiply-adds in each chain and returns the number of floating-point operations. */
double multiply_adds(int64_t steps) {
  const Vector factor = (Vector){} + 0.5f;
  CHAINS(START)
  for (int64_t step = 0; step < steps; ++step) {
    CHAINS(STEP)
  }
  CHAINS(USE)
  return 2.0 * (0 CHAINS(ONE)) * steps * (vector_bytes / sizeof(float));
}
