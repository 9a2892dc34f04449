// For LD_PRELOAD: reports 8-bit integer dot products as accelerated. lavapipe computes them and says that they are not,
// so that ggml's Vulkan backend would not use them.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>
#include <vulkan/vulkan.h>

static void * loader_function(const char * name) {
    void * loader = dlopen("libvulkan.so.1", RTLD_NOW);
    return loader == NULL ? NULL : dlsym(loader, name);
}

VKAPI_ATTR void VKAPI_CALL vkGetPhysicalDeviceProperties2(
    VkPhysicalDevice device, VkPhysicalDeviceProperties2 * properties) {
    const PFN_vkGetPhysicalDeviceProperties2 read = (PFN_vkGetPhysicalDeviceProperties2) loader_function(
        "vkGetPhysicalDeviceProperties2");
    read(device, properties);
    for (VkBaseOutStructure * s = properties->pNext; s != NULL; s = s->pNext) {
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES) {
            ((VkPhysicalDeviceShaderIntegerDotProductProperties *) s)->integerDotProduct4x8BitPackedSignedAccelerated =
                VK_TRUE;
        }
    }
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance instance, const char * name) {
    const PFN_vkGetInstanceProcAddr find = (PFN_vkGetInstanceProcAddr) loader_function("vkGetInstanceProcAddr");
    const PFN_vkVoidFunction found = find(instance, name);
    const int is_read = strcmp(name, "vkGetPhysicalDeviceProperties2") == 0 ||
        strcmp(name, "vkGetPhysicalDeviceProperties2KHR") == 0;
    return found != NULL && is_read ? (PFN_vkVoidFunction) vkGetPhysicalDeviceProperties2 : found;
}
