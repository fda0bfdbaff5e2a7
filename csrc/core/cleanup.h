/* SPDX-License-Identifier: MIT */
/* Ownership by attribute: what a function still holds when it returns is given back. */
#ifndef KC_CLEANUP_H
#define KC_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void kc_cleanup_free(void *pointer)
{
	free(*(void **)pointer);
}

static inline void kc_cleanup_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void kc_cleanup_unlock(pthread_mutex_t **mutex)
{
	pthread_mutex_unlock(*mutex);
}

#define kc_auto_free __attribute__((cleanup(kc_cleanup_free)))
#define kc_auto_close __attribute__((cleanup(kc_cleanup_close)))

/* Hold a pthread mutex to the end of the enclosing block. */
#define kc_hold(m)                                                                                 \
	pthread_mutex_t *kc_held_                                                                  \
		__attribute__((cleanup(kc_cleanup_unlock), unused)) = (pthread_mutex_lock(m), (m))

/* For what every exit passes through: without a call of its own, and what is rare out of its way. */
#define kc_hot static inline __attribute__((always_inline))
#define kc_cold __attribute__((noinline, cold))
/* For its other functions: they stand together, in as few pages as can be (see KC_VCPU_ALIGN). */
#define kc_exit_path __attribute__((hot))

/* Hand a pointer on: the value, and the variable no longer owns it. */
#define kc_move(p)                                                                                 \
	__extension__({                                                                            \
		__typeof__(p) moved_ = (p);                                                        \
		(p) = NULL;                                                                        \
		moved_;                                                                            \
	})

#endif
