// Sorts (token, slot) pairs by expert, as the comments of upstream's function specify.
#pragma once

#include "common.cuh"

inline void ggml_cuda_launch_mm_ids_helper(const int32_t * ids, int32_t * ids_src1, int32_t * ids_dst,
    int32_t * expert_bounds, int n_experts, int n_tokens, int n_expert_used, int nchannels_y, int si1, int sis1,
    bool write_inverse, cudaStream_t) {
    GGML_ASSERT(!write_inverse);
    int n = 0;
    for (int expert = 0; expert < n_experts; ++expert) {
        expert_bounds[expert] = n;
        for (int token = 0; token < n_tokens; ++token) {
            for (int slot = 0; slot < n_expert_used; ++slot) {
                if (ids[token * si1 + slot] == expert) {
                    ids_src1[n] = token * sis1 + slot % nchannels_y;
                    ids_dst[n++] = token * n_expert_used + slot;
                }
            }
        }
    }
    expert_bounds[n_experts] = n;
}
