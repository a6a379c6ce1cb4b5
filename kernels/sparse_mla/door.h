// How a door with strided tensors checks the calls of this room, and copies what kernels cannot read in place.
#pragma once
#include <cmath>
#include <initializer_list>
#include <optional>
#include <string>

#include "kernels/sparse_mla/cpu.h"

namespace dsf {

// The scale of a call that gives none.
inline float scale_or_default(const std::optional<double>& scale, const TensorView& q) {
  const int64_t d_qk = q.ndim > 0 ? q.sizes[q.ndim - 1] : 1;
  return float(scale ? *scale : std::pow(double(d_qk), -0.5));
}

// The last dimension's values side by side, the others at any distance.
template <class Operand>
bool lay_out(Operand& operand) {
  if (!operand.get() || operand.view.ndim == 0) return false;
  const int64_t last = operand.view.ndim - 1;
  const bool contiguous = operand.view.sizes[last] < 2 || !operand.view.strides || operand.view.strides[last] == 1;
  return !(operand.whole && contiguous) && operand.make_rows();
}

template <class Operand>
struct MlaOperands {
  Operand q, kv, indices, attn_sink, topk_length;
};

// forward: dsf_sparse_mla_check, or backward's.
template <class Operand, class Raise>
SparseMlaArgs checked_mla(int32_t (*forward)(const SparseMlaCall*, SparseMlaArgs*, Problem*), SparseMlaCall* call,
                          const std::optional<double>& scale, MlaOperands<Operand>& given, Operand* dout,
                          const Raise& raise) {
  SparseMlaArgs args;
  const auto check = [&] {
    call->q = given.q.view;
    call->kv = given.kv.view;
    call->indices = given.indices.view;
    call->attn_sink = given.attn_sink.get();
    call->topk_length = given.topk_length.get();
    if (dout) call->dout = dout->get();
    call->scale = scale_or_default(scale, call->q);
    Problem problem;
    if (!forward(call, &args, &problem)) raise(problem);
  };
  check();
  bool copied = dout && lay_out(*dout);
  for (Operand* one : {&given.q, &given.kv, &given.indices, &given.attn_sink, &given.topk_length})
    copied |= lay_out(*one);
  if (copied) check();
  return args;
}

template <class Operand>
struct DecodeOperands {
  Operand q, k_cache, indices, topk_length, block_table, cache_seqlens, extra_k_cache, extra_indices, extra_topk_length,
      attn_sink;
};

template <class Operand, class Raise>
SparseMlaArgs checked_decode(SparseMlaDecodeCall* call, const std::optional<double>& scale,
                             DecodeOperands<Operand>& given, const Raise& raise) {
  SparseMlaArgs args;
  const auto check = [&] {
    call->q = given.q.view;
    call->k_cache = given.k_cache.view;
    call->indices = given.indices.get();
    call->topk_length = given.topk_length.get();
    call->block_table = given.block_table.get();
    call->cache_seqlens = given.cache_seqlens.get();
    call->extra_k_cache = given.extra_k_cache.get();
    call->extra_indices = given.extra_indices.get();
    call->extra_topk_length = given.extra_topk_length.get();
    call->attn_sink = given.attn_sink.get();
    call->scale = scale_or_default(scale, call->q);
    Problem problem;
    if (!dsf_sparse_mla_decode_check(call, &args, &problem)) raise(problem);
  };
  // The check reads these two: a copy where their strides mean nothing.
  lay_out(given.block_table);
  lay_out(given.cache_seqlens);
  check();
  bool copied = false;
  for (Operand* one : {&given.q, &given.k_cache, &given.indices, &given.topk_length, &given.extra_k_cache,
                       &given.extra_indices, &given.extra_topk_length, &given.attn_sink})
    copied |= lay_out(*one);
  if (copied) check();
  return args;
}

}  // namespace dsf
