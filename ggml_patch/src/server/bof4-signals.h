// llama-server ends when SIGINT or SIGTERM tells it to, also while it generates: of 20 servers, 17 did not.
// - Its handler locks the mutex of the queue of tasks. Called in the thread that the signal has interrupted, it waited for
//   ever where that thread held the mutex. So it is called in a thread of its own.
// - Requests waited for results of tasks that nobody works on any more. They give up as if the client had gone.
#pragma once

#include <atomic>
#include <functional>

inline std::atomic<bool> bof4_server_is_stopping{ false };

// The condition on which a request gives up.
inline std::function<bool()> bof4_or_stopping(const std::function<bool()> & is_connection_closed) {
    return [is_connection_closed] { return bof4_server_is_stopping || is_connection_closed(); };
}

#if !defined(_WIN32)
#include <cerrno>
#include <fcntl.h>
#include <thread>
#include <unistd.h>

inline int bof4_signal_pipe[2];

inline void bof4_signal_send(int number) {
    const int error = errno;
    const unsigned char byte = static_cast<unsigned char>(number);
    // where the pipe is full, signals wait in it already
    [[maybe_unused]] const ssize_t n = write(bof4_signal_pipe[1], &byte, 1);
    errno = error;
}

using bof4_signal_handler = void (*)(int);

// A handler for sigaction that lets a thread call `handler`; `handler` itself where no file is left for a pipe.
inline bof4_signal_handler bof4_signal_in_thread(bof4_signal_handler handler) {
    if (pipe(bof4_signal_pipe) != 0) {
        return handler;
    }
    for (const int end : bof4_signal_pipe) {
        fcntl(end, F_SETFD, FD_CLOEXEC);
    }
    std::thread([handler] {
        unsigned char number;
        ssize_t n;
        while ((n = read(bof4_signal_pipe[0], &number, 1)) == 1 || (n < 0 && errno == EINTR)) {
            if (n == 1) {
                bof4_server_is_stopping = true;
                handler(number);
            }
        }
    }).detach();
    return bof4_signal_send;
}
#endif
