# What ggml's Vulkan backend needs, named with packages where it is missing or too old. Included by its CMakeLists.txt,
# so that a checkout that was patched, and a bundle, say what `bof4 build --vulkan` says.
set(_bof4_packages "Install what a Vulkan build needs: `apt install libvulkan-dev glslc spirv-headers` on Debian and \
Ubuntu, `dnf install vulkan-devel glslc spirv-headers-devel` on Fedora, or LunarG's Vulkan SDK, with VULKAN_SDK set")

if (DEFINED ENV{VULKAN_SDK})
    list(APPEND CMAKE_PREFIX_PATH "$ENV{VULKAN_SDK}")
endif()
find_package(Vulkan QUIET)
if (NOT Vulkan_INCLUDE_DIR OR NOT EXISTS "${Vulkan_INCLUDE_DIR}/vulkan/vulkan.hpp")
    message(FATAL_ERROR "no Vulkan headers found (vulkan/vulkan.hpp). ${_bof4_packages}; or name a folder of headers \
with -DVulkan_INCLUDE_DIR=FOLDER.")
endif()
if (NOT Vulkan_LIBRARY)
    message(FATAL_ERROR "no Vulkan loader found to link with (libvulkan). ${_bof4_packages}.")
endif()
if (NOT Vulkan_GLSLC_EXECUTABLE)
    message(FATAL_ERROR "no shader compiler found (glslc). ${_bof4_packages}; or name a glslc with \
-DVulkan_GLSLC_EXECUTABLE=FILE.")
endif()
find_package(SPIRV-Headers CONFIG QUIET)
if (NOT SPIRV-Headers_FOUND)
    message(FATAL_ERROR "CMake finds no SPIRV-Headers. ${_bof4_packages}.")
endif()

# ggml uses types of an extension that headers have since 1.3.272
file(STRINGS "${Vulkan_INCLUDE_DIR}/vulkan/vulkan_core.h" _bof4_extension REGEX "VK_EXT_layer_settings" LIMIT_COUNT 1)
if (NOT _bof4_extension)
    message(FATAL_ERROR "the Vulkan headers in ${Vulkan_INCLUDE_DIR} are too old. ggml needs Vulkan's headers 1.3.272 or \
newer. Newer ones need no newer loader or driver: unpack those of a newer distribution (`dpkg -x` of Debian 13's \
libvulkan-dev) or of https://github.com/KhronosGroup/Vulkan-Headers, and name their folder with \
-DVulkan_INCLUDE_DIR=FOLDER.")
endif()
