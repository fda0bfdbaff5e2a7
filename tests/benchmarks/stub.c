// SPDX-License-Identifier: MIT
/*
 * Takes the place of ioctl(), by LD_PRELOAD or by being linked into the program. It finds the run structure
 * where the program mapped it: a second mapping of the same page would make loads wait for stores that they
 * alias.
 */
#include "stub.h"

#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PORT 0x3f8
#define DATA_OFFSET 4096 /* where the kernel puts it, too (KVM_PIO_PAGE_OFFSET) */

static struct kvm_run *run; /* NULL: not armed */
static uint64_t exits, left;
static uint8_t direction;

/* The one vCPU's run structure; NULL if there is none, or more than one. */
static struct kvm_run *find_run(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	struct kvm_run *found = NULL;
	unsigned long start;
	int count = 0;
	char line[512];

	if (!maps)
		return NULL;
	while (fgets(line, sizeof(line), maps)) {
		if (!strstr(line, "anon_inode:kvm-vcpu") || sscanf(line, "%lx-", &start) != 1)
			continue;
		found = (struct kvm_run *)start;
		count++;
	}
	fclose(maps);
	return count == 1 ? found : NULL;
}

int stub_arm(uint64_t count, bool reads)
{
	run = count ? find_run() : NULL;
	exits = left = count;
	direction = reads ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT;
	return run || !count ? 0 : -1;
}

static int answer(void)
{
	if (run->immediate_exit) {
		run->exit_reason = KVM_EXIT_INTR;
		return -1;
	}
	if (!left--) {
		left = exits;
		run->exit_reason = KVM_EXIT_HLT;
		return 0;
	}
	run->exit_reason = KVM_EXIT_IO;
	run->io.direction = direction;
	run->io.size = 1;
	run->io.port = PORT;
	run->io.count = 1;
	run->io.data_offset = DATA_OFFSET;
	((uint8_t *)run)[DATA_OFFSET] = (uint8_t)left;
	return 0;
}

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;

	if (request == KVM_RUN && run)
		return answer();
	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

double stub_cost(uint64_t count)
{
	/* Called as the core calls it: by a pointer that the compiler cannot see through. */
	int (*volatile call)(int, unsigned long, ...) = ioctl;
	struct timespec start, end;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (uint64_t i = 0; i < count; i++)
		call(-1, KVM_RUN, 0);
	clock_gettime(CLOCK_MONOTONIC, &end);
	left = exits; /* the guest starts again */
	return ((double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec)) /
	       (double)count;
}
