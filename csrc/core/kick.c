// SPDX-License-Identifier: MIT
#include "kick.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hostclock.h"
#include "kvm.h"
#include "vcpu.h"

/* The vCPU that this thread runs; others that it runs further out are linked behind it. */
static _Thread_local struct kc_vcpu *innermost;
static _Thread_local pid_t own_id;
static _Thread_local bool own_is_first; /* thread of the process */
static _Thread_local unsigned int own_id_generation;
static _Thread_local uint64_t own_serial;
static _Atomic uint64_t last_serial;

static pid_t thread_id(void)
{
	/* A system call only the first time, and once more in the child of a fork. */
	if (!own_id || own_id_generation != kc_fork_generation()) {
		own_id = (pid_t)syscall(SYS_gettid);
		own_is_first = own_id == getpid();
		own_id_generation = kc_fork_generation();
		own_serial = atomic_fetch_add(&last_serial, 1) + 1;
	}
	return own_id;
}

int kc_kick_signal(void)
{
	/*
	 * Not one that queues: the kernel refuses to send such a one when the user's limit of pending signals
	 * (ulimit -i) is used up, and a kick must never be lost. Nothing sends this one on our architectures.
	 */
	return SIGSTKFLT;
}

void kc_kick_init(struct kc_kick *kick)
{
	memset(kick, 0, sizeof(*kick));
	pthread_mutex_init(&kick->lock, NULL);
	kick->generation = kc_fork_generation();
	sigemptyset(&kick->own);
}

static void kick_only(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, kc_kick_signal());
}

/* All but those that an error of the thread itself raises. */
static void all_signals(sigset_t *set)
{
	static const int faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS };

	sigfillset(set);
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		sigdelset(set, faults[i]);
}

/* The kernel's mask: 64 signals, of which number n is bit n - 1. The C libraries keep it first. */
static uint64_t kernel_mask(const sigset_t *set)
{
	uint64_t bits;

	memcpy(&bits, set, sizeof(bits));
	return bits;
}

/* The mask the guest runs with: the thread's own, with the kick open (V18). */
static int tell_kvm(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kc_kick *kick = &vcpu->kick;
	struct {
		struct kvm_signal_mask header;
		uint64_t bits;
	} __attribute__((packed)) mask = { .header.len = sizeof(uint64_t) };

	mask.bits = kernel_mask(&kick->own) & ~(1ULL << (kc_kick_signal() - 1));
	if (kick->is_told && kick->told == mask.bits)
		return 0;
	if (ioctl(vcpu->fd, KVM_SET_SIGNAL_MASK, &mask))
		return kc_fail_os(err, "KVM_SET_SIGNAL_MASK");
	kick->told = mask.bits;
	kick->is_told = true;
	return 0;
}

/* glibc has it since 2.32; false from the first thread on that is started. */
extern char __libc_single_threaded __attribute__((weak));

static bool others_take_signals(void)
{
	return !&__libc_single_threaded || !__libc_single_threaded;
}

/* The signals are shut: when the host's handlers are asked next. */
static void ask_later(struct kc_vcpu *vcpu)
{
	vcpu->ask_at = UINT64_MAX;
	vcpu->shut_at = 0;
	if (!own_is_first)
		return;
	vcpu->ask_at = kc_hostclock() + (uint64_t)(KC_ASK_NS * vcpu->hostclock_per_ns);
	/* The guest may make no exit any more. */
	if (others_take_signals())
		vcpu->shut_at = vcpu->ask_at;
}

int kc_kick_begin(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kc_kick *kick = &vcpu->kick;
	sigset_t all;

	if (atomic_load(&kick->thread))
		return kc_fail(err, KC_ERR_STATE,
			       "%s is inside a run already: a handler cannot run it again",
			       vcpu->name);
	all_signals(&all);
	pthread_sigmask(SIG_SETMASK, &all, &kick->own);
	if (tell_kvm(vcpu, err)) {
		pthread_sigmask(SIG_SETMASK, &kick->own, NULL);
		return -1;
	}
	kick->open = kick->keep_shut = false;
	vcpu->outer = innermost;
	innermost = vcpu;
	pthread_mutex_lock(&kick->lock);
	/* Those that were meant for the last run, and came too late for it. */
	atomic_fetch_and(&vcpu->requests, ~(unsigned int)(KC_REQUEST_STOP | KC_REQUEST_INSTS));
	atomic_store(&kick->thread, thread_id());
	pthread_mutex_unlock(&kick->lock);
	kick->serial = own_serial;
	ask_later(vcpu);
	return 0;
}

/* Take a pending kick away; false if there was none. */
static bool take_one(void)
{
	static const struct timespec at_once;
	sigset_t set;
	int taken;

	kick_only(&set);
	do
		taken = sigtimedwait(&set, NULL, &at_once);
	while (taken < 0 && errno == EINTR);
	return taken > 0;
}

static void send(struct kc_kick *kick)
{
	if (!atomic_exchange(&kick->sent, 1))
		syscall(SYS_tgkill, getpid(), atomic_load(&kick->thread), kc_kick_signal());
}

void kc_kick_end(struct kc_vcpu *vcpu)
{
	struct kc_kick *kick = &vcpu->kick;

	pthread_mutex_lock(&kick->lock);
	atomic_store(&kick->thread, 0);
	pthread_mutex_unlock(&kick->lock);
	/* From here on nobody sends: what is pending is the last. */
	if (kick->expected || atomic_load(&kick->sent)) {
		kc_kick_consume(vcpu);
		while (take_one())
			;
	}
	kick->expected = false;
	innermost = vcpu->outer;
	/* A kick, or a timer's, for a vCPU that this thread runs further out may have been taken with ours. */
	for (struct kc_vcpu *outer = innermost; outer; outer = outer->outer) {
		outer->armed_until = 0;
		if (atomic_exchange(&outer->kick.sent, 0))
			send(&outer->kick);
	}
	pthread_sigmask(SIG_SETMASK, &kick->own, NULL);
}

bool kc_kick_with(struct kc_vcpu *vcpu, unsigned int requests)
{
	struct kc_kick *kick = &vcpu->kick;
	bool inside;

	/* In the child of a fork it may be a thread of the parent's that runs it, or holds the lock. */
	if (kick->generation != kc_fork_generation())
		return false;
	pthread_mutex_lock(&kick->lock);
	inside = atomic_load(&kick->thread) != 0;
	if (inside) {
		atomic_fetch_or(&vcpu->requests, requests);
		send(kick);
	}
	pthread_mutex_unlock(&kick->lock);
	return inside;
}

bool kc_kick(struct kc_vcpu *vcpu)
{
	return kc_kick_with(vcpu, 0);
}

bool kc_kick_from_elsewhere(struct kc_vcpu *vcpu)
{
	pid_t thread = atomic_load(&vcpu->kick.thread);

	return thread && thread != thread_id() && kc_kick(vcpu);
}

bool kc_kick_consume(struct kc_vcpu *vcpu)
{
	struct kc_kick *kick = &vcpu->kick;
	/* There may be another one, a timer's and somebody's: it ends the next entry at once, and is taken then. */
	bool any = take_one();

	/* Only now: whoever kicks from here on sends a new signal, and we look at everything anew anyway. */
	if (atomic_exchange(&kick->sent, 0)) {
		/*
		 * Perhaps announced but not here yet (what was taken may have been the timer's): it still
		 * comes, and must not outlive the run.
		 */
		kick->expected = true;
		any = true;
	}
	/* It may have been the timer's, whose clock is not quite the one that armed_until is read from. */
	if (any)
		vcpu->armed_until = 0;
	return any;
}

void kc_kick_wait(struct kc_vcpu *vcpu, uint64_t ns)
{
	struct timespec time = { .tv_sec = (time_t)(ns / 1000000000),
				 .tv_nsec = (long)(ns % 1000000000) };
	sigset_t set;

	kick_only(&set);
	sigtimedwait(&set, NULL, &time);
	kc_kick_consume(vcpu);
}

void kc_kick_open(struct kc_vcpu *vcpu)
{
	struct kc_kick *kick = &vcpu->kick;
	sigset_t mask;

	if (kick->open || kick->keep_shut ||
	    !atomic_load_explicit(&kick->thread, memory_order_relaxed))
		return;
	mask = kick->own;
	sigaddset(&mask, kc_kick_signal());
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	kick->open = true;
	vcpu->shut_at = kc_hostclock() + (uint64_t)(KC_OPEN_NS * vcpu->hostclock_per_ns);
}

void kc_kick_shut(struct kc_vcpu *vcpu)
{
	sigset_t all;

	if (!vcpu->kick.open)
		return;
	all_signals(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	vcpu->kick.open = false;
}

int kc_kick_host_signals(struct kc_vcpu *vcpu, struct kc_error *err)
{
	int failed;

	/* The C handlers run as the mask opens; what they left to the host program is done by the hook. */
	kc_kick_open(vcpu);
	kc_kick_shut(vcpu);
	ask_later(vcpu);
	if (!vcpu->hooks.host_signals)
		return 0;
	vcpu->kick.keep_shut = true;
	failed = vcpu->hooks.host_signals(vcpu->hooks.opaque, err);
	vcpu->kick.keep_shut = false;
	return failed;
}
