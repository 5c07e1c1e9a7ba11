/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times system calls, in CPU time, for tests/bench/capture_cost.py. Each line "KIND N" on standard input is answered with the
 * nanoseconds of one of N rounds: "tcp" is a write and a read of 150 bytes over loopback TCP, a request; "answer" the same
 * of an HTTP/1 response with content, "head" of one that ends with its head; "file" a one-byte read of /dev/zero (a call
 * we know on a file that is no socket), "other" a call we do not know.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HEAD                                                                                          \
	"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Fri, 27 Nov 2026 20:00:00 GMT\r\nContent-Length: 10\r\n" \
	"Connection: keep-alive\r\n\r\n"

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), server;
	int zero = open("/dev/zero", O_RDONLY);
	char kind[16], bytes[150] = "GET / HTTP/1.1\r\n";
	int rounds;

	if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &length) ||
	    connect(client, (struct sockaddr *)&address, length))
		return 1;
	server = accept(listener, NULL, NULL);
	while (scanf("%15s %d", kind, &rounds) == 2) {
		double start = now();

		for (int i = 0; i < rounds; i++) {
			if (!strcmp(kind, "tcp")) {
				if (write(client, bytes, sizeof(bytes)) != sizeof(bytes) ||
				    read(server, bytes, sizeof(bytes)) != sizeof(bytes))
					return 1;
			} else if (!strcmp(kind, "answer") || !strcmp(kind, "head")) {
				size_t size = sizeof(HEAD) - 1 + (kind[0] == 'a' ? 10 : 0);

				if (write(server, HEAD "0123456789", size) != size || read(client, bytes, size) != size)
					return 1;
			} else if (!strcmp(kind, "file")) {
				if (read(zero, bytes, 1) != 1)
					return 1;
			} else {
				syscall(SYS_getppid);
			}
		}
		printf("%.1f\n", (now() - start) / rounds);
		fflush(stdout);
	}
	return 0;
}
