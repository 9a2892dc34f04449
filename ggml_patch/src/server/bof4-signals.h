// The signals that stop llama-server, handled in a thread of their own. llama-server's handler locks the mutex of its
// queue of tasks. Called in the thread that a signal has interrupted, it waited for ever where that thread held the mutex:
// while tokens were generated, 1 of about 10 servers did not stop.
#pragma once

#if !defined(_WIN32)
#include <cerrno>
#include <fcntl.h>
#include <thread>
#include <unistd.h>

static int bof4_signal_pipe[2];

static void bof4_signal_send(int number) {
    const int error = errno;
    const unsigned char byte = static_cast<unsigned char>(number);
    if (write(bof4_signal_pipe[1], &byte, 1) != 1) {
        // the pipe is full: signals wait in it already
    }
    errno = error;
}

// A handler for sigaction that lets a thread call `handler`; `handler` itself where there are no files left for a pipe.
static void (*bof4_signal_in_thread(void (*handler)(int)))(int) {
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
                handler(number);
            }
        }
    }).detach();
    return bof4_signal_send;
}
#endif
