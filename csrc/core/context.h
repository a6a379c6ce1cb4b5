// What a kernel borrows from its caller: threads and scratch memory. The core has neither of its own.
#pragma once
#include <cstdint>

namespace dsf {

struct Context {
  // Calls body(arg, begin, end) on disjoint ranges that cover [0, n), perhaps from several threads, and
  // returns when all are done. body never throws. Null: the caller's thread does everything.
  void (*parallel_for)(void* pool, int64_t n, void (*body)(void* arg, int64_t begin, int64_t end), void* arg);
  void* pool;
  int64_t num_threads;  // at least 1; decides how work is cut, never what is computed
  void* workspace;      // the bytes that the op's *_workspace_bytes asked for, 64-byte aligned
};

template <class Body>
void parallel_for(const Context& context, int64_t n, Body body) {
  if (n <= 0) return;
  if (!context.parallel_for || context.num_threads <= 1 || n == 1) return body(int64_t{0}, n);
  context.parallel_for(
      context.pool, n, [](void* arg, int64_t begin, int64_t end) { (*static_cast<Body*>(arg))(begin, end); }, &body);
}

}  // namespace dsf
