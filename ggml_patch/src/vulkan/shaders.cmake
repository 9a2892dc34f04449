# Shaders of the BOF4 types. The sources of an older upstream (the previous pin), which the types do not support, lack
# this header.
if (EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/ggml-vulkan-common.h")
    file(GLOB _bof4_shader_files CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/*.comp")
    list(APPEND _ggml_vk_shader_files ${_bof4_shader_files})
endif()
