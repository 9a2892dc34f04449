// llama-server's web page, read when the server starts from the folder `ui` beside the program, where none is embedded
// in the program. Building the page takes npm and minutes; so the programs do not depend on it, and one page serves all
// builds. server-http.cpp includes this instead of ui.h, and serves these assets as it does embedded ones.
#pragma once

#include "ui.h"

#if !defined(LLAMA_UI_HAS_ASSETS) // nothing is embedded: ui.h has a table of no assets
#define LLAMA_UI_HAS_ASSETS 1
#define llama_ui_get_assets bof4_page_get_assets
#define llama_ui_find_asset bof4_page_find_asset
#define llama_ui_use_gzip bof4_page_is_compressed

#include <cstdint>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#elif defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

struct bof4_page {
    std::deque<std::string> contents; // the assets point into it
    std::vector<llama_ui_asset> assets;
    bool is_compressed = false;
};

// The page of a build without one.
static const char bof4_page_missing[] =
    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>llama-server</title></head><body>\n"
    "<p>llama-server is running. This build has no web page.</p>\n"
    "<p><code>bof4 build --ui</code> adds it, and needs Node.js; then start the server again.</p>\n"
    "<p>The HTTP interface works without it, for example <a href=\"v1/models\">/v1/models</a>.</p>\n"
    "</body></html>\n";

// The folder of this program; empty where it cannot be told.
static std::filesystem::path bof4_page_program_folder() {
    std::error_code error;
#if defined(_WIN32)
    std::vector<wchar_t> name(32768);
    const DWORD length = GetModuleFileNameW(nullptr, name.data(), static_cast<DWORD>(name.size()));
    const std::filesystem::path program(std::wstring(name.data(), length));
#elif defined(__APPLE__)
    std::vector<char> name(4096);
    uint32_t size = static_cast<uint32_t>(name.size());
    const std::filesystem::path program(_NSGetExecutablePath(name.data(), &size) == 0 ? name.data() : "");
#else
    const std::filesystem::path program("/proc/self/exe");
#endif
    return std::filesystem::canonical(program, error).parent_path();
}

static std::string bof4_page_media_type(const std::filesystem::path & name) {
    static const std::pair<const char *, const char *> types[] = {
        { ".html", "text/html; charset=utf-8" },
        { ".css", "text/css" },
        { ".js", "application/javascript" },
        { ".json", "application/json" },
        { ".webmanifest", "application/manifest+json" },
        { ".svg", "image/svg+xml" },
        { ".png", "image/png" },
        { ".ico", "image/x-icon" },
        { ".woff", "font/woff" },
        { ".woff2", "font/woff2" },
    };
    for (const auto & [suffix, type] : types) {
        if (name.extension() == suffix) {
            return type;
        }
    }
    return "application/octet-stream";
}

// A quoted hash of the content (FNV-1a): a browser asks with it whether what it has is still right.
static std::string bof4_page_etag(const std::string & content) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const char c : content) {
        hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    }
    char text[32];
    snprintf(text, sizeof text, "\"%016llx\"", static_cast<unsigned long long>(hash));
    return text;
}

static void bof4_page_add(bof4_page & page, const std::filesystem::path & name, std::string content) {
    const std::string & kept = page.contents.emplace_back(std::move(content));
    page.assets.push_back({ name.generic_string(), reinterpret_cast<const unsigned char *>(kept.data()), kept.size(),
        bof4_page_etag(kept), bof4_page_media_type(name) });
}

// The files NAME.gz of a folder as the assets NAME; where index.html is not among them, a page that says so.
static bof4_page bof4_page_load(const std::filesystem::path & folder) {
    bof4_page page;
    std::error_code error;
    if (!folder.empty() && std::filesystem::is_regular_file(folder / "index.html.gz", error)) {
        page.is_compressed = true;
        std::filesystem::recursive_directory_iterator entry(folder, error), end;
        for (; !error && entry != end; entry.increment(error)) {
            const std::filesystem::path & path = entry->path();
            if (path.extension() == ".gz") {
                std::ifstream file(path, std::ios::binary);
                std::string content{ std::istreambuf_iterator<char>(file), {} };
                bof4_page_add(page, path.lexically_relative(folder).replace_extension(), std::move(content));
            }
        }
    } else {
        bof4_page_add(page, "index.html", bof4_page_missing);
    }
    return page;
}

static const bof4_page & bof4_page_get() {
    static const bof4_page page = [] {
        const std::filesystem::path folder = bof4_page_program_folder();
        return bof4_page_load(folder.empty() ? folder : folder / "ui");
    }();
    return page;
}

static const std::vector<llama_ui_asset> & bof4_page_get_assets() {
    return bof4_page_get().assets;
}

static bool bof4_page_is_compressed() {
    return bof4_page_get().is_compressed;
}

static const llama_ui_asset * bof4_page_find_asset(const std::string & name) {
    for (const llama_ui_asset & asset : bof4_page_get_assets()) {
        if (asset.name == name) {
            return &asset;
        }
    }
    return nullptr;
}
#endif
