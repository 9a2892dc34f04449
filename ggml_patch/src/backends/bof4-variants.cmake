# Which variants of the CPU backend are built: those in BOF4_CPU_VARIANTS (empty: all) whose instructions the compiler
# knows. A processor for which there is none of its own loads the best of the others.

include(CheckCXXCompilerFlag)

set(BOF4_FLAG_alderlake -mavxvnni)
set(BOF4_FLAG_sapphirerapids -mamx-int8)
set(BOF4_FLAG_armv9.2_1 -march=armv9.2-a+sve+sme)
set(BOF4_FLAG_armv9.2_2 -march=armv9.2-a+sve2+sme)

# Sets `result` to whether the variant is built.
function(bof4_has_variant tag_name result)
    set(${result} TRUE PARENT_SCOPE)
    set(flag "${BOF4_FLAG_${tag_name}}")
    if (BOF4_CPU_VARIANTS AND NOT tag_name IN_LIST BOF4_CPU_VARIANTS)
        set(${result} FALSE PARENT_SCOPE)
    elseif (flag)
        check_cxx_compiler_flag("${flag}" BOF4_HAS_${tag_name})
        if (NOT BOF4_HAS_${tag_name})
            message(WARNING "no CPU variant ${tag_name}: ${CMAKE_CXX_COMPILER} does not know ${flag}; use a newer one")
            set(${result} FALSE PARENT_SCOPE)
        endif()
    endif()
endfunction()
