// Vectors of floats, products of matrices in registers, and threads.
#pragma once
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16, REGISTERS = 24;
#elif defined(__AVX__)
constexpr int W = 8, REGISTERS = 12;
#else
constexpr int W = 4, REGISTERS = 24;
#endif
typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t Int __attribute__((vector_size(4 * W)));
typedef float Loose __attribute__((vector_size(4 * W), aligned(4), may_alias));

static inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
static inline void store(float* p, Vec x) { *reinterpret_cast<Loose*>(p) = x; }
static inline Vec splat(float x) { return Vec{} + x; }

static inline Vec multiply_add(Vec sum, Vec x, Vec y) { return sum + x * y; }

#if defined(__AVX512BF16__)
// A lane of an Int holds two bfloat16 numbers, the first one in the low bits, which the processor multiplies and adds.
constexpr bool PAIRS = true;
static inline Int load(const uint32_t* p) { return (Int)_mm512_loadu_si512(p); }
static inline void store(uint32_t* p, Int x) { _mm512_storeu_si512(p, (__m512i)x); }
static inline Int splat(uint32_t x) { return Int{} + int32_t(x); }
static inline Vec multiply_add(Vec sum, Int x, Int y) { return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y); }
static inline void store_neighbours(uint32_t* p, Vec x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }
static inline Int pair(Vec low, Vec high) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  typedef int16_t Short __attribute__((vector_size(64)));
  const Short order = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (Int)_mm512_permutexvar_epi16((__m512i)order, both);
}
#else
constexpr bool PAIRS = false;
#endif

// Compute out[r] = start[r] + sum over i < count of left[i * left_i + r * left_r] * right[i], for R rows of N vectors.
// Without start, the sums are added to out. E is float, or uint32_t for pairs of bfloat16.
template <int N, int R, bool DENSE, typename E>
static inline void add_rows(const E* left, long left_i, long left_r, const E* right, long right_i, long count,
                            const float* start, float* out, long out_r) {
  if (DENSE) left_r = 1;
  else left_i = 1;
  Vec sum[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) sum[r][n] = start ? splat(start[r]) : load(out + r * out_r + n * W);
  for (long i = 0; i < count; i++) {
    decltype(load(right)) x[N];
    for (int n = 0; n < N; n++) x[n] = load(right + i * right_i + n * W);
    for (int r = 0; r < R; r++) {
      const auto y = splat(left[i * left_i + r * left_r]);
      for (int n = 0; n < N; n++) sum[r][n] = multiply_add(sum[r][n], x[n], y);
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(out + r * out_r + n * W, sum[r][n]);
}

// DENSE tells that left_r is 1. Otherwise left_i is 1. The number of rows is rounded up to the rows of a step.
template <int N, bool DENSE, typename E>
static void add_product(const E* left, long left_i, long left_r, const E* right, long right_i, long count,
                        const float* start, float* out, long out_r, long rows) {
  constexpr int R = 8 * N <= REGISTERS ? 8 : 4 * N <= REGISTERS ? 4 : 2;
  for (long r = 0; r < rows; r += R)
    add_rows<N, R, DENSE>(left + r * (DENSE ? 1 : left_r), left_i, left_r, right, right_i, count,
                          start ? start + r : nullptr, out + r * out_r, out_r);
}

static inline float read(float x) { return x; }
static inline float read(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
static inline void write(float* p, float x) { *p = x; }
static inline void write(uint16_t* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *p = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

// Floats at the start of a cache line. Growing loses the content.
class Buffer {
  std::vector<Vec> vectors;

 public:
  float* get(long count) {
    if (count > long(vectors.size()) * W) vectors = std::vector<Vec>((count + W - 1) / W);
    return reinterpret_cast<float*>(vectors.data());
  }
};

// Run a function in threads. They are those of torch's OpenMP, because its idle threads spin and would hold up others.
template <typename F>
static void run_in_threads(int threads, F& run) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (threads > 1 && parallel) return parallel([](void* f) { (*static_cast<F*>(f))(); }, &run, threads, 0);
  std::vector<std::thread> others;
  for (int t = 1; t < threads; t++) others.emplace_back(std::ref(run));
  run();
  for (auto& thread : others) thread.join();
}

// Run work(0, scratch) to work(count - 1, scratch) in threads, each with a scratch of its own.
template <typename Scratch, typename F>
static void share_work(long count, int threads, const F& work) {
  std::atomic<long> next{0};
  auto run = [&] {
    Scratch scratch;
    for (long i; (i = next++) < count;) work(i, scratch);
  };
  run_in_threads(std::min<long>(threads, count), run);
}
