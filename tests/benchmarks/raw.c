// SPDX-License-Identifier: MIT
/*
 * The same work in plain C on the bare kernel interface, with no code of kvmcpu's: what the benchmarks compare
 * with. A shared library for ctypes; times are nanoseconds, a negative one is an error number.
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define EXPORT __attribute__((visibility("default")))
#define ORIGIN 0x1000
#define RAM_SIZE 0x100000
#define LIFE_SIZE (16u << 20)
#define CPUID_MAX 256

struct guest {
	int vm, vcpu;
	size_t ram_size, run_size;
	uint8_t *ram;
	struct kvm_run *run;
	timer_t timer;
	bool has_timer, has_mask;
	sigset_t own;
	uint8_t output[1 << 16]; /* what was written to ports, the last of it */
	size_t written;
};

/* Asked for once, as every program would that makes more than one VM. */
static int device = -1;
static int run_size;
static struct kvm_cpuid2 *cpuid;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int kick_signal(void)
{
	return SIGRTMIN + 5;
}

EXPORT int raw_open(const char *path)
{
	device = open(path, O_RDWR | O_CLOEXEC);
	if (device < 0)
		return -errno;
	run_size = ioctl(device, KVM_GET_VCPU_MMAP_SIZE, 0);
	cpuid = calloc(1, sizeof(*cpuid) + CPUID_MAX * sizeof(cpuid->entries[0]));
	if (run_size < 0 || !cpuid)
		return -errno;
	cpuid->nent = CPUID_MAX;
	return ioctl(device, KVM_GET_SUPPORTED_CPUID, cpuid) ? -errno : 0;
}

static void destroy(struct guest *guest)
{
	int saved = errno;

	if (guest->has_timer)
		timer_delete(guest->timer);
	if (guest->run)
		munmap(guest->run, (size_t)run_size);
	if (guest->vcpu >= 0)
		close(guest->vcpu);
	if (guest->vm >= 0)
		close(guest->vm);
	if (guest->ram)
		munmap(guest->ram, guest->ram_size);
	errno = saved;
}

static int create(struct guest *guest, size_t ram_size)
{
	struct kvm_userspace_memory_region region = { .memory_size = ram_size };
	void *ram, *run;

	*guest = (struct guest){ .vm = -1, .vcpu = -1, .ram_size = ram_size };
	ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram == MAP_FAILED)
		return -1;
	guest->ram = ram;
	region.userspace_addr = (uintptr_t)ram;
	guest->vm = ioctl(device, KVM_CREATE_VM, 0);
	if (guest->vm < 0 || ioctl(guest->vm, KVM_SET_USER_MEMORY_REGION, &region))
		return -1;
	guest->vcpu = ioctl(guest->vm, KVM_CREATE_VCPU, 0);
	if (guest->vcpu < 0)
		return -1;
	run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, guest->vcpu, 0);
	if (run == MAP_FAILED)
		return -1;
	guest->run = run;
	return ioctl(guest->vcpu, KVM_SET_CPUID2, cpuid);
}

/* Real mode, all segments at 0, about to run the code at ORIGIN. */
static int start(struct guest *guest)
{
	struct kvm_regs regs = { .rip = ORIGIN, .rsp = ORIGIN, .rflags = 2 };
	struct kvm_sregs sregs;

	if (ioctl(guest->vcpu, KVM_GET_SREGS, &sregs))
		return -1;
	sregs.cs.base = sregs.cs.selector = 0;
	return ioctl(guest->vcpu, KVM_SET_SREGS, &sregs) || ioctl(guest->vcpu, KVM_SET_REGS, &regs)
		       ? -1
		       : 0;
}

EXPORT struct guest *raw_guest(const uint8_t *code, size_t size)
{
	struct guest *guest = malloc(sizeof(*guest));

	if (!guest)
		return NULL;
	if (size > RAM_SIZE - ORIGIN || create(guest, RAM_SIZE)) {
		destroy(guest);
		free(guest);
		return NULL;
	}
	memcpy(guest->ram + ORIGIN, code, size);
	if (start(guest)) {
		destroy(guest);
		free(guest);
		return NULL;
	}
	return guest;
}

EXPORT void raw_free(struct guest *guest)
{
	destroy(guest);
	free(guest);
}

EXPORT uint8_t *raw_ram(struct guest *guest)
{
	return guest->ram;
}

/* One entry: the exit's reason, or minus the error's number. */
static int enter(struct guest *guest)
{
	return ioctl(guest->vcpu, KVM_RUN, 0) ? -errno : (int)guest->run->exit_reason;
}

/*
 * The guest runs with the thread's own signals, the kick among them, which is blocked elsewhere (block_kick): so
 * a run can be stopped, and a kick in the instant before the entry is not lost.
 */
static int make_stoppable(struct guest *guest, const sigset_t *own)
{
	struct {
		struct kvm_signal_mask header;
		uint64_t bits;
	} __attribute__((packed)) mask = { .header.len = sizeof(uint64_t) };

	if (guest->has_mask)
		return 0;
	for (int i = 1; i <= 64; i++)
		if (sigismember(own, i) == 1)
			mask.bits |= 1ULL << (i - 1);
	guest->has_mask = !ioctl(guest->vcpu, KVM_SET_SIGNAL_MASK, &mask);
	return guest->has_mask ? 0 : -1;
}

static int block_kick(struct guest *guest)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, kick_signal());
	return pthread_sigmask(SIG_BLOCK, &set, &guest->own);
}

/* Port accesses served until the guest halts. */
EXPORT double raw_run_to_halt(struct guest *guest)
{
	struct kvm_run *run = guest->run;
	double begin = now();
	int reason;

	if (block_kick(guest) || make_stoppable(guest, &guest->own))
		return -errno;
	while ((reason = enter(guest)) == KVM_EXIT_IO)
		if (run->io.direction == KVM_EXIT_IO_OUT)
			guest->output[guest->written++ % sizeof(guest->output)] =
				((uint8_t *)run)[run->io.data_offset];
	pthread_sigmask(SIG_SETMASK, &guest->own, NULL);
	return reason == KVM_EXIT_HLT ? now() - begin : reason < 0 ? reason : -EPROTO;
}

/* Entries that come back at once. */
EXPORT double raw_half_entries(struct guest *guest, int n)
{
	double begin = now();
	int reason = -EINTR;

	guest->run->immediate_exit = 1;
	for (int i = 0; i < n && reason == -EINTR; i++)
		reason = enter(guest);
	guest->run->immediate_exit = 0;
	return reason == -EINTR ? now() - begin : -EPROTO;
}

/* For each of n exits the time that it takes to read the registers then. */
EXPORT int raw_read_registers(struct guest *guest, int n, double *times)
{
	struct kvm_regs regs;

	for (int i = 0; i < n; i++) {
		int reason = enter(guest);
		double begin;

		if (reason < 0)
			return reason;
		begin = now();
		if (ioctl(guest->vcpu, KVM_GET_REGS, &regs))
			return -errno;
		times[i] = now() - begin;
		guest->written += regs.rax;
	}
	return 0;
}

/* A VM with a vCPU and 16 MiB, made and destroyed, n times. */
EXPORT double raw_lives(int n)
{
	double begin = now();

	for (int i = 0; i < n; i++) {
		struct guest guest;
		int failed = create(&guest, LIFE_SIZE);

		destroy(&guest);
		if (failed)
			return -errno;
	}
	return now() - begin;
}

EXPORT double raw_copy(uint8_t *to, const uint8_t *from, size_t size)
{
	double begin = now();

	memcpy(to, from, size);
	/* So that the compiler cannot leave it out. */
	__asm__ volatile("" : : "r"(to) : "memory");
	return now() - begin;
}

/* n instructions by single steps. */
EXPORT double raw_steps(struct guest *guest, int n)
{
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
	double begin = now();
	int reason = KVM_EXIT_DEBUG;

	if (ioctl(guest->vcpu, KVM_SET_GUEST_DEBUG, &debug))
		return -errno;
	for (int i = 0; i < n && reason == KVM_EXIT_DEBUG; i++)
		reason = enter(guest);
	debug.control = 0;
	if (ioctl(guest->vcpu, KVM_SET_GUEST_DEBUG, &debug))
		return -errno;
	return reason == KVM_EXIT_DEBUG ? now() - begin : -EPROTO;
}

/* ---- kicks by a timer: a signal that is blocked outside the guest ---- */

static int kicks_begin(struct guest *guest)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = kick_signal() };

	if (block_kick(guest))
		return -1;
	if (guest->has_timer)
		return 0;
	if (make_stoppable(guest, &guest->own))
		return -1;
	event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &event, &guest->timer))
		return -1;
	guest->has_timer = true;
	return 0;
}

static void consume(void)
{
	static const struct timespec at_once;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, kick_signal());
	while (sigtimedwait(&set, NULL, &at_once) > 0)
		;
}

static int arm(struct guest *guest, long ns, long interval)
{
	struct itimerspec spec = {
		.it_value = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 },
		.it_interval = { .tv_sec = interval / 1000000000,
				 .tv_nsec = interval % 1000000000 },
	};

	return timer_settime(guest->timer, 0, &spec, NULL);
}

static void kicks_end(struct guest *guest)
{
	arm(guest, 0, 0);
	consume();
	pthread_sigmask(SIG_SETMASK, &guest->own, NULL);
}

/* n times: how much later than asked for an entry comes back that the timer ends. */
EXPORT int raw_lateness(struct guest *guest, int n, long ns, double *late)
{
	int reason = -EINTR;

	if (kicks_begin(guest))
		return -errno;
	for (int i = 0; i < n && reason == -EINTR; i++) {
		double begin = now();

		if (arm(guest, ns, 0)) {
			reason = -errno;
			break;
		}
		reason = enter(guest);
		consume();
		late[i] = now() - begin - (double)ns;
	}
	kicks_end(guest);
	return reason == -EINTR ? 0 : -EPROTO;
}

/* Until the guest writes to a port, kicked every so often (0: not at all). */
EXPORT double raw_run_periodically(struct guest *guest, long interval)
{
	double begin = now(), time;
	int reason;

	if (kicks_begin(guest) || (interval && arm(guest, interval, interval)))
		return -errno;
	while ((reason = enter(guest)) == -EINTR)
		consume();
	time = now() - begin;
	kicks_end(guest);
	return reason == KVM_EXIT_IO ? time : reason < 0 ? reason : -EPROTO;
}
