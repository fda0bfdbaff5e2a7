/* SPDX-License-Identifier: MIT */
/*
 * Kicks and signals (V10, V18).
 *
 * While our code runs, all signals of the thread are blocked; the guest runs with the thread's own mask and the
 * kick signal open (KVM_SET_SIGNAL_MASK). So a signal that comes at any moment, also right before the entry,
 * ends the entry at once, and none is missed. A kick is sent only to a thread that is inside a run, under a
 * lock, and what is pending is taken away before the run ends: none leaks.
 *
 * Callbacks of the user's run with the thread's own signals open again ("open" below). Closing them for each
 * entry after a callback would cost two system calls; instead the first entry that lasts longer than
 * KC_OPEN_NS after the callback is interrupted, the host's handlers are asked, and the signals are closed.
 *
 * A signal to the process that comes while the process's first thread has it blocked here goes to another
 * thread, if there is one that takes it; the host program's handlers may yet be the first thread's business (as
 * Python's are). So there they are asked every KC_ASK_NS, at an exit, and in a process that has other threads an
 * entry does not last longer than that.
 */
#ifndef KC_KICK_H
#define KC_KICK_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "errors.h"

#define KC_OPEN_NS 20000000
#define KC_ASK_NS 80000000

struct kc_vcpu;

struct kc_kick {
	unsigned int generation; /* of the process, see kc_fork_generation() */
	pthread_mutex_t lock; /* orders sending with entering and leaving a run */
	_Atomic pid_t thread; /* inside a run; 0: none */
	uint64_t serial; /* of the thread; its id may come back for another one, this does not */
	atomic_uint sent; /* a kick is on its way: no need for another (a word, as kc_vm.closed is) */
	sigset_t own; /* the thread's mask at the start of the run */
	uint64_t told; /* what KVM was last told to run the guest with */
	bool is_told;
	bool expected; /* a timer or a counter may have sent the signal since it was last looked for */
	bool open; /* the thread's own signals may be delivered in our code */
	bool keep_shut; /* not now: the host program's handlers are being called */
};

int kc_kick_signal(void);
void kc_kick_init(struct kc_kick *kick);
/* Bracket a run on the calling thread. */
int kc_kick_begin(struct kc_vcpu *vcpu, struct kc_error *err);
void kc_kick_end(struct kc_vcpu *vcpu);
/* From any thread: false if nobody runs the vCPU. */
bool kc_kick(struct kc_vcpu *vcpu);
/* The same, and ask for something (enum kc_request), if and only if somebody runs it. */
bool kc_kick_with(struct kc_vcpu *vcpu, unsigned int requests);
/* The same unless this thread is the one that runs it. */
bool kc_kick_from_elsewhere(struct kc_vcpu *vcpu);
/* After an interrupted entry: take away what is pending of kicks; true if there was one. */
bool kc_kick_consume(struct kc_vcpu *vcpu);
/* Let the thread's own signals be delivered, and shut them out again. */
void kc_kick_open(struct kc_vcpu *vcpu);
void kc_kick_shut(struct kc_vcpu *vcpu);
/* A signal of the host program's came: let its handlers run. -1: they want the run to end. */
int kc_kick_host_signals(struct kc_vcpu *vcpu, struct kc_error *err);
/* Sleep until kicked, or for this long. */
void kc_kick_wait(struct kc_vcpu *vcpu, uint64_t ns);

#endif
