// Shaders of the BOF4 types, for upstream's vulkan-shaders-gen: included in its function process_shaders, whose
// string_to_spv compiles a variant of a source or, in another run, lists its name. Names are those of upstream's types.
// Needs bof4-format.h.
{
    using defines = std::map<std::string, std::string>;
#define BOF4_SHADER_TYPE(NAME, name) { "DATA_A_" #NAME, #name },
    const std::vector<std::pair<std::string, std::string>> bof4_types = { BOF4_TYPES_VULKAN(BOF4_SHADER_TYPE) };
#undef BOF4_SHADER_TYPE
    const defines float_types = { { "FLOAT_TYPE", "float" }, { "FLOAT_TYPEV2", "vec2" }, { "FLOAT_TYPEV4", "vec4" },
        { "FLOAT_TYPEV8", "mat2x4" } };
    const defines half_types = { { "FLOAT_TYPE", "float16_t" }, { "FLOAT_TYPEV2", "f16vec2" },
        { "FLOAT_TYPEV4", "f16vec4" }, { "FLOAT_TYPEV8", "f16mat2x4" }, { "FLOAT16", "1" } };
    const auto merge = [](std::initializer_list<defines> maps) {
        defines all;
        for (const defines & map : maps) {
            all.insert(map.begin(), map.end());
        }
        return all;
    };

    for (const auto & bof4_type : bof4_types) {
        const std::string type = bof4_type.second;
        const defines a = { { bof4_type.first, "1" } };
        const defines to_float = { { "D_TYPE", "float" } }, to_half = { { "D_TYPE", "float16_t" } };
        const defines rows = { { "B_TYPE", "int" } };
        string_to_spv("dequant_" + type, "bof4-dequantize.comp", merge({ a, to_half }));
        string_to_spv("get_rows_" + type, "bof4-get-rows.comp", merge({ a, rows, to_half }));
        string_to_spv("get_rows_" + type + "_f32", "bof4-get-rows.comp", merge({ a, rows, to_float }));

        string_to_spv("cpy_" + type + "_f32", "bof4-copy-to-float.comp", merge({ a, to_float }));
        for (const auto & [from, s_type] : { std::pair("f32", "float"), std::pair("f16", "float16_t") }) {
            const std::string source = "bof4-copy-from-float.comp";
            const defines all = merge({ a, to_float, { { "S_TYPE", s_type } } });
            const defines i32 = { { "SET_ROWS", "1" }, { "B_TYPE", "uint" }, { "B_LOW", "" } };
            const defines i64 = { { "SET_ROWS", "1" }, { "B_TYPE", "uvec2" }, { "B_LOW", ".x" } };
            string_to_spv("set_rows_" + std::string(from) + "_" + type + "_i32", source, merge({ all, i32 }));
            string_to_spv("set_rows_" + std::string(from) + "_" + type + "_i64", source, merge({ all, i64 }));
            if (std::string(from) == "f32") {
                string_to_spv("cpy_f32_" + type, source, all);
            }
        }

        // products with few columns: a reduction by shared memory, by subgroups and shared memory, by one subgroup
        const std::vector<std::pair<std::string, defines>> reductions = {
            { "", {} },
            { "_subgroup", { { "USE_SUBGROUP_ADD", "1" } } },
            { "_subgroup_no_shmem", { { "USE_SUBGROUP_ADD_NO_SHMEM", "1" } } },
        };
        const defines table = { { "BOF4_LEVEL_TABLE", "1" } };
        const defines b_float = { { "B_TYPE", "float" }, { "B_TYPEV4", "vec4" } };
        const defines b_half = { { "B_TYPE", "float16_t" }, { "B_TYPEV4", "f16vec4" } };
        const defines experts = { { "MUL_MAT_ID", "1" } };
        for (const auto & [suffix, reduction] : reductions) {
            const defines all = merge({ a, reduction, float_types, to_float });
            const std::string source = "bof4-mul-mat-vec.comp";
            string_to_spv("mul_mat_vec_" + type + "_f32_f32" + suffix, source, merge({ all, table, b_float }));
            string_to_spv("mul_mat_vec_" + type + "_f16_f32" + suffix, source, merge({ all, table, b_half }));
            string_to_spv(
                "mul_mat_vec_id_" + type + "_f32_f32" + suffix, source, merge({ all, table, b_float, experts }));
#if defined(GGML_VULKAN_INTEGER_DOT_GLSLC_SUPPORT)
            const defines q8_1 = { { "BOF4_Q8_1", "1" } };
            string_to_spv("mul_mat_vec_" + type + "_q8_1_f32" + suffix, source, merge({ all, q8_1 }));
            string_to_spv("mul_mat_vec_id_" + type + "_q8_1_f32" + suffix, source, merge({ all, q8_1, experts }));
#endif
        }

        // products with many columns: upstream's tiles
        const auto mul_mm = [&](const defines & id, const std::string & name, const std::string & b, bool half,
                                bool coopmat, bool coopmat2, bool half_sums, bool dot2) {
            defines all = merge({ a, id, to_float, half ? half_types : float_types });
            all.insert({ "ACC_TYPE", half_sums ? "float16_t" : "float" });
            all.insert({ "ACC_TYPEV2", half_sums ? "f16vec2" : "vec2" });
            all.insert({ "ACC_TYPE_VEC4", half_sums ? "f16vec4" : "vec4" });
            if (half_sums) {
                all.insert({ "ACC_TYPE_MAX", "float16_t(65504.0)" });
            }
            if (coopmat) {
                all.insert({ "COOPMAT", "1" });
            }
            if (dot2) {
                all.insert({ "DOT2_F16", "1" });
            }
#if defined(GGML_VULKAN_COOPMAT2_DECODE_VECTOR_GLSLC_SUPPORT)
            if (coopmat2) {
                all.insert({ "GGML_VULKAN_COOPMAT2_DECODE_VECTOR", "1" });
            }
#endif
            if (b == "q8_1") {
                all.insert({ "BOF4_MMQ", "1" });
                string_to_spv(name + "_" + type + "_q8_1", "mul_mmq.comp", all, half);
                return;
            }
            all.insert(table.begin(), table.end());
            const bool b_is_half = b == "f16";
            all.insert({ "LOAD_VEC_A", coopmat2 ? "1" : "8" });
            all.insert({ "LOAD_VEC_B", coopmat2 ? "1" : half ? "8" : "4" });
            all.insert({ "B_TYPE_SCALAR", b_is_half ? "float16_t" : "float" });
            all.insert({ "B_TYPEV4", b_is_half ? "f16vec4" : "vec4" });
            all.insert({ "B_TYPE", coopmat2 ? "float16_t" : !half ? "vec4" : b_is_half ? "f16mat2x4" : "mat2x4" });
            string_to_spv(name + "_" + type + "_" + b + (dot2 ? "_dot2" : ""),
                coopmat2 ? "mul_mm_cm2.comp" : "mul_mm.comp", all, half, coopmat, coopmat2, half_sums);
        };
        const std::vector<std::pair<std::string, defines>> operations = {
            { "matmul", {} },
            { "matmul_id", { { "MUL_MAT_ID", "1" } } },
            { "matmul_id_subgroup", { { "MUL_MAT_ID", "1" }, { "MUL_MAT_ID_USE_SUBGROUPS", "1" } } },
        };
        for (const auto & [name, id] : operations) {
            mul_mm(id, name, "f32", false, false, false, false, false);
#if defined(GGML_VULKAN_INTEGER_DOT_GLSLC_SUPPORT)
            mul_mm(id, name, "q8_1", false, false, false, false, false);
            mul_mm(id, name, "q8_1", true, false, false, false, false);
#endif
            for (const bool half_sums : { false, true }) {
                mul_mm(id, name, "f32", true, false, false, half_sums, false);
                mul_mm(id, name, "f32", true, false, false, half_sums, true);
                if (name == "matmul_id") {
                    continue; // devices with cooperative matrices have the subgroup operations
                }
#if defined(GGML_VULKAN_COOPMAT_GLSLC_SUPPORT)
                mul_mm(id, name, "f32", true, true, false, half_sums, false);
                mul_mm(id, name, "f16", true, true, false, half_sums, false);
#endif
#if defined(GGML_VULKAN_COOPMAT2_GLSLC_SUPPORT)
                mul_mm(id, name, "f16", true, false, true, half_sums, false);
#endif
            }
        }
    }
    string_to_spv("bof4_add_outliers", "bof4-add-outliers.comp", {});
}
