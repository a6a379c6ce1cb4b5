// Memory that the doors lend to kernels. Not for the core itself, which neither allocates nor throws.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

namespace dsf {

// Bytes that begin at a multiple of 64, a cache line and a 512-bit vector. They are malloc's, aligned by hand: a block
// of aligned_alloc leaves a hole that is too small for the next one of its size (glibc bug 14581, before 2.38), so that
// 200 blocks of 4 MB, each freed after a small one was made, take 800 MB in place of 4.
class Memory {
 public:
  static constexpr size_t ALIGNMENT = 64;

  Memory() = default;
  // Nothing for 0 bytes; std::runtime_error where the machine has no more, or bytes is negative.
  Memory(const char* op, int64_t bytes) {
    if (bytes == 0) return;
    if (bytes > 0) block_.reset(std::malloc(static_cast<size_t>(bytes) + ALIGNMENT));
    if (!block_)
      throw std::runtime_error(std::string(op) + ": workspace must fit into memory; got " + std::to_string(bytes) +
                               " bytes");
    const auto address = reinterpret_cast<uintptr_t>(block_.get());
    data_ = static_cast<char*>(block_.get()) + (ALIGNMENT - address % ALIGNMENT);
  }
  char* data() const { return data_; }

 private:
  std::unique_ptr<void, decltype(&std::free)> block_{nullptr, &std::free};
  char* data_ = nullptr;
};

}  // namespace dsf
