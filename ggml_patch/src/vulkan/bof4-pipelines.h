// Pipelines of the BOF4 types: included in upstream's function ggml_vk_load_shaders, whose functions, tile sizes and
// sizes of workgroups these use, in the way of upstream's types with tables (IQ4_NL). Needs bof4-vulkan.h.
#if defined(BOF4_VULKAN)
{
    const uint32_t pc_vec = sizeof(vk_mat_vec_push_constants), pc_vec_id = sizeof(vk_mat_vec_id_push_constants);
    const uint32_t pc_mm = sizeof(vk_mat_mat_push_constants), pc_mm_id = sizeof(vk_mat_mat_id_push_constants);

    // One of the three reductions of products with few columns.
#define BOF4_REDUCED(shader, reduction) \
    (reduction) == SHADER_REDUCTION_MODE_SUBGROUP     ? shader##_subgroup_no_shmem_len \
        : (reduction) == SHADER_REDUCTION_MODE_HYBRID ? shader##_subgroup_len \
                                                      : shader##_len, \
        (reduction) == SHADER_REDUCTION_MODE_SUBGROUP ? shader##_subgroup_no_shmem_data \
        : (reduction) == SHADER_REDUCTION_MODE_HYBRID ? shader##_subgroup_data \
                                                      : shader##_data

    for (uint32_t w = 0; w < DMMV_WG_SIZE_COUNT; ++w) {
        const uint32_t size = subgroup_size * (w == DMMV_WG_SIZE_SUBGROUP ? 1 : 4);
        const shader_reduction_mode reduction = !use_subgroups ? SHADER_REDUCTION_MODE_SHMEM
            : w == DMMV_WG_SIZE_SUBGROUP                       ? SHADER_REDUCTION_MODE_SUBGROUP
                                                               : SHADER_REDUCTION_MODE_HYBRID;
        const auto vec = [&](vk_pipeline & pipeline, const char * name, size_t len, const void * data,
                             uint32_t bindings, uint32_t push_constants, uint32_t rows,
                             std::vector<uint32_t> constants) {
            ggml_vk_create_pipeline(device, pipeline, name, len, data, "main", bindings, push_constants, { rows, 1, 1 },
                constants, 1, true, use_subgroups, force_subgroup_size);
        };
        // a thread decodes twice as many weights as one of upstream's: half as many rows
        const uint32_t rows = rm_kq;
#define BOF4_VEC(TYPE, type) \
    for (uint32_t i = 0; i < mul_mat_vec_max_cols; ++i) { \
        vec(device->pipeline_dequant_mul_mat_vec_f32_f32[w][GGML_TYPE_##TYPE][i], "mul_mat_vec_" #type "_f32_f32", \
            BOF4_REDUCED(mul_mat_vec_##type##_f32_f32, reduction), mul_mat_vec_num_bindings, pc_vec, rows, \
            { size, rows, i + 1 }); \
        vec(device->pipeline_dequant_mul_mat_vec_f16_f32[w][GGML_TYPE_##TYPE][i], "mul_mat_vec_" #type "_f16_f32", \
            BOF4_REDUCED(mul_mat_vec_##type##_f16_f32, reduction), mul_mat_vec_num_bindings, pc_vec, rows, \
            { size, rows, i + 1 }); \
    } \
    vec(device->pipeline_dequant_mul_mat_vec_id_f32[w][GGML_TYPE_##TYPE], "mul_mat_vec_id_" #type "_f32", \
        BOF4_REDUCED(mul_mat_vec_id_##type##_f32_f32, reduction), mul_mat_vec_id_num_bindings, pc_vec_id, rows, \
        { size, rows });
        BOF4_TYPES_VULKAN(BOF4_VEC)
#undef BOF4_VEC

#if defined(GGML_VULKAN_INTEGER_DOT_GLSLC_SUPPORT)
        if (device->integer_dot_product) {
#define BOF4_VEC_INT(TYPE, type) \
    for (uint32_t i = 0; i < mul_mat_vec_max_cols; ++i) { \
        vec(device->pipeline_dequant_mul_mat_vec_q8_1_f32[w][GGML_TYPE_##TYPE][i], "mul_mat_vec_" #type "_q8_1_f32", \
            BOF4_REDUCED(mul_mat_vec_##type##_q8_1_f32, reduction), mul_mat_vec_num_bindings, pc_vec, rows, \
            { size, rows, i + 1 }); \
    } \
    vec(device->pipeline_dequant_mul_mat_vec_id_q8_1_f32[w][GGML_TYPE_##TYPE], "mul_mat_vec_id_" #type "_q8_1_f32", \
        BOF4_REDUCED(mul_mat_vec_id_##type##_q8_1_f32, reduction), mul_mat_vec_id_num_bindings, pc_vec_id, rows, \
        { size, rows });
            BOF4_TYPES_VULKAN(BOF4_VEC_INT)
#undef BOF4_VEC_INT
        }
#endif
    }
#undef BOF4_REDUCED

    const auto tiles = [&](const std::vector<uint32_t> & s, const std::vector<uint32_t> & m,
                           const std::vector<uint32_t> & l) -> std::vector<vk_tile_config> {
        return { { s, s_mmq_wg_denoms, s_align }, { m, m_mmq_wg_denoms, m_align }, { l, l_mmq_wg_denoms, l_align } };
    };
    // Creates the pipelines of one product, those tiles that fit into shared memory.
    const auto mm = [&](ggml_type type, ggml_type b, bool half_sums, bool id, const std::vector<vk_tile_config> & all,
                        const char * name, size_t len, const void * data, const spec_fn_t & constants,
                        bool disable_robustness, bool full_subgroups, uint32_t subgroup, bool pin) {
        const bool is_int = b == GGML_TYPE_Q8_1;
        const std::vector<vk_tile_config> fitting = filter_tc(all, type, id, is_int);
        if (!fitting.empty()) {
            create_mm_pipelines({ type, b, id, half_sums }, fitting, name, len, data, id ? pc_mm_id : pc_mm,
                id ? (uint32_t) mul_mat_id_param_count : 3, constants, disable_robustness, full_subgroups, subgroup,
                /*create_aligned =*/!is_int, pin);
        }
    };
#define BOF4_SHADER(name) #name, name##_len, name##_data

#if defined(VK_NV_cooperative_matrix2) && defined(GGML_VULKAN_COOPMAT2_GLSLC_SUPPORT)
    if (device->coopmat2) {
        const spec_fn_t constants = [&](const std::vector<uint32_t> & tile, bool aligned) {
            std::vector<uint32_t> all = tile;
            all.push_back(aligned);
            all.push_back(device->subgroup_size);
            return all;
        };
        const std::vector<vk_tile_config> id_tiles = { { s_warptile_mmqid, s_mmqid_wg_denoms, s_align },
            { m_warptile_mmqid, m_mmqid_wg_denoms, m_align }, { l_warptile_mmqid, l_mmqid_wg_denoms, l_align } };
        const std::vector<vk_tile_config> all_tiles = tiles(s_warptile_mmq, m_warptile_mmq, l_warptile_mmq);
#define BOF4_MM(TYPE, type) \
    mm(GGML_TYPE_##TYPE, GGML_TYPE_F16, true, false, all_tiles, BOF4_SHADER(matmul_##type##_f16_f16acc_cm2), \
        constants, true, false, 0, false); \
    mm(GGML_TYPE_##TYPE, GGML_TYPE_F16, false, false, all_tiles, BOF4_SHADER(matmul_##type##_f16_cm2), constants, \
        true, false, 0, false); \
    mm(GGML_TYPE_##TYPE, GGML_TYPE_F16, true, true, id_tiles, BOF4_SHADER(matmul_id_subgroup_##type##_f16_f16acc_cm2), \
        constants, true, false, 0, false); \
    mm(GGML_TYPE_##TYPE, GGML_TYPE_F16, false, true, id_tiles, BOF4_SHADER(matmul_id_subgroup_##type##_f16_cm2), \
        constants, true, false, 0, false);
        BOF4_TYPES_VULKAN(BOF4_MM)
#undef BOF4_MM
    } else
#endif
#if defined(VK_KHR_cooperative_matrix) && defined(GGML_VULKAN_COOPMAT_GLSLC_SUPPORT)
        if (device->coopmat_support) {
        const spec_fn_t constants = [&](const std::vector<uint32_t> & tile, bool aligned) {
            return ggml_vk_mul_mm_spec(tile, aligned);
        };
        const bool pin = device->vendor_id == VK_VENDOR_ID_INTEL;
        const std::vector<vk_tile_config> all_tiles = tiles(s_warptile_mmq, m_warptile_mmq, l_warptile_mmq);
#define BOF4_MM_ACC(TYPE, type, half_sums, suffix) \
    mm(GGML_TYPE_##TYPE, GGML_TYPE_F32, half_sums, false, all_tiles, BOF4_SHADER(matmul_##type##_f32##suffix##_cm1), \
        constants, false, true, 0, pin); \
    mm(GGML_TYPE_##TYPE, GGML_TYPE_F16, half_sums, false, all_tiles, BOF4_SHADER(matmul_##type##_f16##suffix##_cm1), \
        constants, false, true, 0, pin); \
    mm(GGML_TYPE_##TYPE, GGML_TYPE_F32, half_sums, true, all_tiles, \
        BOF4_SHADER(matmul_id_subgroup_##type##_f32##suffix##_cm1), constants, false, true, 0, pin); \
    mm(GGML_TYPE_##TYPE, GGML_TYPE_F16, half_sums, true, all_tiles, \
        BOF4_SHADER(matmul_id_subgroup_##type##_f16##suffix##_cm1), constants, false, true, 0, pin);
#define BOF4_MM(TYPE, type) \
    if (device->coopmat_acc_f16_support) { \
        BOF4_MM_ACC(TYPE, type, true, _f16acc) \
    } \
    if (device->coopmat_acc_f32_support) { \
        BOF4_MM_ACC(TYPE, type, false, ) \
    }
        BOF4_TYPES_VULKAN(BOF4_MM)
#undef BOF4_MM
#undef BOF4_MM_ACC
    } else
#endif
    {
        const spec_fn_t constants = [&](const std::vector<uint32_t> & tile, bool aligned) {
            return ggml_vk_mul_mm_spec(tile, aligned);
        };
        const bool ballot = device->subgroup_ballot && device->subgroup_require_full_support && subgroup_min_size_16;
        const uint32_t id_subgroup = ballot ? mul_mat_subgroup_size : 0;
        const std::vector<vk_tile_config> all_tiles = tiles(s_warptile_mmq, m_warptile_mmq, l_warptile_mmq);
        const std::vector<vk_tile_config> id_tiles = tiles(s_warptile_mmqid, m_warptile_mmqid, l_warptile_mmqid);

#define BOF4_MM_PAIR(TYPE, type, b, half_sums, id, of_tiles, suffix) \
    if (!(id)) { \
        mm(GGML_TYPE_##TYPE, b, half_sums, false, of_tiles, BOF4_SHADER(matmul_##type##suffix), constants, false, \
            false, 0, false); \
    } else if (ballot) { \
        mm(GGML_TYPE_##TYPE, b, half_sums, true, of_tiles, BOF4_SHADER(matmul_id_subgroup_##type##suffix), constants, \
            false, true, id_subgroup, false); \
    } else { \
        mm(GGML_TYPE_##TYPE, b, half_sums, true, of_tiles, BOF4_SHADER(matmul_id_##type##suffix), constants, false, \
            false, 0, false); \
    }
#define BOF4_MM_BOTH(TYPE, type, half_sums, suffix) \
    BOF4_MM_PAIR(TYPE, type, GGML_TYPE_F32, half_sums, false, all_tiles, suffix) \
    BOF4_MM_PAIR(TYPE, type, GGML_TYPE_F32, half_sums, true, id_tiles, suffix)
#define BOF4_MM(TYPE, type) \
    if (!device->fp16) { \
        BOF4_MM_BOTH(TYPE, type, false, _f32_fp32) \
    } else if (device->dot2_f16) { \
        BOF4_MM_BOTH(TYPE, type, true, _f32_dot2_f16acc) \
        BOF4_MM_BOTH(TYPE, type, false, _f32_dot2) \
    } else { \
        BOF4_MM_BOTH(TYPE, type, true, _f32_f16acc) \
        BOF4_MM_BOTH(TYPE, type, false, _f32) \
    }
        BOF4_TYPES_VULKAN(BOF4_MM)
#undef BOF4_MM
#undef BOF4_MM_BOTH

#if defined(GGML_VULKAN_INTEGER_DOT_GLSLC_SUPPORT)
        if (device->integer_dot_product) {
            // two scales for 32 weights take more registers: the tiles of upstream's K-quants, but not for experts, where
            // the small one computes half of its rows on devices with subgroups of 8
            const spec_fn_t constants = [](const std::vector<uint32_t> & tile, bool) { return tile; };
            const std::vector<vk_tile_config> all_tiles = tiles(
                s_warptile_mmq_int_k, m_warptile_mmq_int_k, l_warptile_mmq_int_k);
            const std::vector<vk_tile_config> id_tiles = tiles(
                s_warptile_mmqid_int, m_warptile_mmqid_int, l_warptile_mmqid_int);
            const uint32_t id_subgroup = ballot ? mul_mat_subgroup_size : 0;
#define BOF4_MM_INT(TYPE, type, suffix) \
    BOF4_MM_PAIR(TYPE, type, GGML_TYPE_Q8_1, false, false, all_tiles, suffix) \
    BOF4_MM_PAIR(TYPE, type, GGML_TYPE_Q8_1, false, true, id_tiles, suffix)
#define BOF4_MM(TYPE, type) \
    if (device->fp16) { \
        BOF4_MM_INT(TYPE, type, _q8_1) \
    } else { \
        BOF4_MM_INT(TYPE, type, _q8_1_fp32) \
    }
            BOF4_TYPES_VULKAN(BOF4_MM)
#undef BOF4_MM
#undef BOF4_MM_INT
        }
#endif
#undef BOF4_MM_PAIR
    }

#define BOF4_ROWS(TYPE, type) \
    ggml_vk_create_pipeline(device, device->pipeline_dequant[GGML_TYPE_##TYPE], BOF4_SHADER(dequant_##type), "main", \
        2, 5 * sizeof(uint32_t), { 256 * 16, 1, 1 }, {}, 1); \
    ggml_vk_create_pipeline(device, device->pipeline_get_rows[GGML_TYPE_##TYPE], BOF4_SHADER(get_rows_##type), "main", \
        3, sizeof(vk_op_binary_push_constants), { 1024, 1, 1 }, {}, 1); \
    ggml_vk_create_pipeline(device, device->pipeline_get_rows_f32[GGML_TYPE_##TYPE], \
        BOF4_SHADER(get_rows_##type##_f32), "main", 3, sizeof(vk_op_binary_push_constants), { 1024, 1, 1 }, {}, 1);
    BOF4_TYPES_VULKAN(BOF4_ROWS)
#undef BOF4_ROWS

#define BOF4_SET_ROWS(TYPE, source, from, i) \
    ggml_vk_create_pipeline(device, device->pipeline_set_rows_##i[source][GGML_TYPE_##TYPE], \
        BOF4_SHADER(set_rows_##from##_##i), "main", 3, sizeof(vk_op_binary_push_constants), { 1, 1, 1 }, {}, 1, true);
#define BOF4_COPIES(TYPE, type) \
    ggml_vk_create_pipeline(device, device->pipeline_cpy_f32_quant[GGML_TYPE_##TYPE], BOF4_SHADER(cpy_f32_##type), \
        "main", 2, sizeof(vk_op_unary_push_constants), { 32, 1, 1 }, {}, 1); \
    ggml_vk_create_pipeline(device, device->pipeline_cpy_quant_f32[GGML_TYPE_##TYPE], BOF4_SHADER(cpy_##type##_f32), \
        "main", 2, sizeof(vk_op_unary_push_constants), { QK_##TYPE, 1, 1 }, {}, 1); \
    BOF4_SET_ROWS(TYPE, 0, f32_##type, i32) \
    BOF4_SET_ROWS(TYPE, 0, f32_##type, i64) \
    BOF4_SET_ROWS(TYPE, 1, f16_##type, i32) \
    BOF4_SET_ROWS(TYPE, 1, f16_##type, i64)
    BOF4_TYPES_VULKAN(BOF4_COPIES)
#undef BOF4_COPIES
#undef BOF4_SET_ROWS

    for (uint32_t operation = 0; operation < BOF4_LIST_OPERATIONS; ++operation) {
        ggml_vk_create_pipeline(device, ggml_vk_bof4_list_pipeline(device, operation), BOF4_SHADER(bof4_add_outliers),
            "main", 4, sizeof(bof4_list_push_constants), { BOF4_LIST_WORKGROUP, 1, 1 }, { operation }, 1);
    }
#undef BOF4_SHADER
}
#endif
