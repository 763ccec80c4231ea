/* xlbctl capture: records packets before the first step and after the last one. Compiled in with CAPTURE only: a build of its
 * own takes the place of the usual one for as long as a client captures, and shares all of its maps (bpf/loading/loader.py).
 *
 * `xlb` reads the packet and calls xlb_enter, which does what `xlb` does without a capture. On the way the program notes the
 * farm, the backend and what it counts. `finish` calls xlb_captured, which applies the filter and writes the record.
 * Nothing is recorded after until_ns, which the client moves on.
 */
#pragma once
#include "maps.h"

#ifdef CAPTURE

struct capture_settings {
	u64 until_ns;     /* CLOCK_MONOTONIC */
	u64 verdicts;     /* bits by number of a counter; 0: all */
	__be32 client[4]; /* network of clients; IPv4 uses the first word */
	__be32 client_mask[4];
	u32 client_family; /* 4 or 6; 0: all clients */
	u32 farm;          /* 0: all */
	u32 by_backend;    /* only those in capture_backends */
	u32 snap_bytes;    /* kept of a packet, at most CAPTURE_SNAP_BYTES */
};

/* A record as the client reads it, followed by the bytes of the packet before, and of the packet after. */
struct captured {
	u64 entered_ns; /* CLOCK_MONOTONIC */
	u64 left_ns;
	u64 counted; /* bits by number of a counter: the verdict and the events */
	u32 ingress; /* index of an interface */
	u32 egress;  /* of a packet that is sent */
	u32 before_bytes;
	u32 after_bytes;
	u32 before_kept;
	u32 after_kept;
	u32 action;
	u32 farm; /* 0: none, or unknown */
	u32 backend;
	u32 cpu;
};

/* What is known of a packet's headers. */
struct headers {
	__be32 source[4];
	__be32 destination[4];
	__be32 quoted_source[4]; /* of the packet that an ICMP error quotes */
	__be32 quoted_destination[4];
	__be16 destination_port;
	u8 family; /* 4 or 6; 0: neither IP nor ARP */
	u8 protocol;
	u8 later;  /* a fragment without ports */
	u8 quotes; /* family of the quoted packet */
};

/* Of the packet that a CPU handles. */
struct observed {
	struct captured record;
	u8 kept[2 * CAPTURE_SNAP_BYTES];
	struct headers headers;
	__be32 client[4]; /* of a reply; all zero: unknown */
	u32 entered;      /* it is recorded */
};
_Static_assert(COUNTER_COUNT <= 64, "captured.counted is a word of bits");

struct capture_loss {
	u64 seen;
	u64 matched;
	u64 lost;
};

BPF_TABLE_PINNED("array", u32, struct capture_settings, capture_settings, 1, PINS "/capture_settings");
BPF_TABLE_PINNED("hash", u32, u32, capture_backends, MAX_BACKENDS, PINS "/capture_backends");
BPF_TABLE_PINNED("percpu_array", u32, struct observed, capture_observed, 1, PINS "/capture_observed");
BPF_TABLE_PINNED("percpu_array", u32, struct capture_loss, capture_losses, 1, PINS "/capture_losses");
RING_PINNED(struct captured, capture_ring, CAPTURE_RING_BYTES, PINS "/capture_ring");

static __always_inline struct observed *observed_here(void)
{
	u32 zero = 0;

	return capture_observed.lookup(&zero);
}

static __always_inline void observe_counter(u32 number)
{
	struct observed *observed = observed_here();

	if (observed)
		observed->record.counted |= 1ULL << (number & 63);
}

/* backend 0: it is not selected yet. */
static __always_inline void observe_farm(u32 farm, u32 backend)
{
	struct observed *observed = observed_here();

	if (!observed)
		return;
	observed->record.farm = farm;
	if (backend)
		observed->record.backend = backend;
}

/* The end of a packet's path. Returns only if the call fails. */
static __always_inline void observe_end(struct packet *packet, int action)
{
	struct observed *observed = observed_here();

	if (!observed)
		return;
	observed->record.action = action;
	observed->record.egress = packet->egress_ifindex; /* if it is redirected */
	handlers.call(packet->context, HANDLER_CAPTURED);
}

#else

static __always_inline void observe_counter(u32 number)
{
}

static __always_inline void observe_farm(u32 farm, u32 backend)
{
}

static __always_inline void observe_end(struct packet *packet, int action)
{
}

#endif
