/* Does nothing until it is told to end: the image that is known by the names of two registries. */
#include <signal.h>
#include <unistd.h>

static void end(int signal) {
    _exit(128 + signal);
}

int main(void) {
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;)
        pause();
}
