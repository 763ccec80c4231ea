/* Which backend a client keeps: by its address (persistence), or by the connection id of a QUIC packet. The parts that do not
 * depend on the address family. Compiled only if a farm uses one of them.
 */
#pragma once
#include "flow.h"

#if defined(PERSISTENCE) || defined(QUIC)
#define AFFINITY

/* Per farm; read when a connection is opened, and for persistence once per second and connection. */
struct farm_affinity {
	u32 persistence_ticks; /* time to live since the last use; 0: no persistence */
	u32 flags;             /* AFFINITY_FLAG_* */
	__be32 mask_v4[1];     /* of the client prefix */
	__be32 mask_v6[4];
	u8 quic_scheme; /* QUIC_* */
	u8 quic_offset; /* of the first byte that is compared, in the connection id */
	u8 quic_length; /* bytes that are compared */
	u8 zero;
};
_Static_assert(sizeof(struct farm_affinity) == 32, "farm_affinity");

/* Which farm a backend belongs to, and whether it may take new connections at the moment. */
struct backend_affinity {
	u32 farm;
	u32 open;
};

BPF_TABLE_PINNED("array", u32, struct farm_affinity, farm_affinity, MAX_FARMS, PINS "/farm_affinity");
BPF_TABLE_PINNED("array", u32, struct backend_affinity, backend_affinity, MAX_BACKENDS, PINS "/backend_affinity");

static __always_inline bool has_backend(u32 farm, u32 backend_id)
{
	struct backend_affinity *backend = backend_affinity.lookup(&backend_id);

	return backend && backend->farm == farm;
}

static __always_inline bool is_open(u32 farm, u32 backend_id)
{
	struct backend_affinity *backend = backend_affinity.lookup(&backend_id);

	return backend && backend->farm == farm && backend->open;
}
#endif

#ifdef PERSISTENCE
/* The backend of a client. */
struct persistent {
	u32 home;      /* the first one, to which the client returns if the farm wants it */
	u32 backend;   /* the one it used last; in use while `home` takes no connections */
	u32 last_used; /* ticks; up to 1/16 of the time to live old while it is used (PERSISTENCE_SLACK_SHIFT) */
};

static __always_inline bool is_persistent(struct persistent *entry, struct farm_affinity *settings, u32 tick)
{
	u32 ticks = settings->persistence_ticks, age = tick - entry->last_used;

	return age <= ticks + (ticks >> PERSISTENCE_SLACK_SHIFT) || age >> 31; /* the latter: the peer's clock is ahead */
}

/* Seldom enough that the entries of busy clients are not written, and sent to the peer, all the time. */
static __always_inline void use_persistent(struct persistent *entry, struct farm_affinity *settings, u32 tick)
{
	u32 age = tick - entry->last_used;

	if (age >> 31 || age > settings->persistence_ticks >> PERSISTENCE_SLACK_SHIFT)
		entry->last_used = tick;
}
#endif

#ifdef QUIC
/* A server id in connection ids, padded with zeros: all ids of a farm have the same length. */
struct quic_key {
	u32 farm;
	u8 id[MAX_QUIC_ID_BYTES];
};
_Static_assert(sizeof(struct quic_key) == 4 + MAX_QUIC_ID_BYTES && MAX_QUIC_ID_BYTES % 4 == 0, "quic_key");

BPF_TABLE_PINNED("hash", struct quic_key, u32, quic_servers, MAX_BACKENDS, PINS "/quic_servers", BPF_F_NO_PREALLOC);

static long (*load_packet_bytes)(struct xdp_md *, u32, void *, u32) = (void *)189; /* bpf_xdp_load_bytes, since Linux 5.18 */

/* Read the farm's bytes of the destination connection id of a datagram. False: it has none that long.
 *
 * RFC 8999, of every version of QUIC: a long header (first bit set) has the version in bytes 1 to 4, the length of the id in
 * byte 5, and then the id. A short header has the id from byte 1 on, and its length is known to the endpoints alone.
 */
static __always_inline bool read_connection_id(struct packet *packet, struct farm_affinity *settings, struct quic_key *key)
{
	struct udphdr *udp = packet->transport;
	u32 at, bytes, offset = settings->quic_offset, length = settings->quic_length;
	u8 header[6];

	if ((void *)(udp + 1) > packet->end || length < 1 || length > MAX_QUIC_ID_BYTES)
		return false;
	at = packet->transport - (void *)packet->ethernet + sizeof(*udp);
	bytes = ntohs(udp->len) - sizeof(*udp);
	if (bytes < sizeof(header) || load_packet_bytes(packet->context, at, header, sizeof(header)))
		return false;
	if (header[0] & 0x80) {
		if (header[5] < offset + length || !(header[1] | header[2] | header[3] | header[4]))
			return false; /* too short; or version negotiation, which no client sends */
		offset += sizeof(header);
	} else {
		offset += 1;
	}
	return offset + length <= bytes && !load_packet_bytes(packet->context, at + offset, key->id, length);
}

/* The backend that the connection id names or stands for; 0: none. `service`: the listener. */
static __always_inline u32 quic_backend(struct packet *packet, struct service *service, struct farm_affinity *settings,
					u32 seed)
{
	struct quic_key key = { .farm = service->farm };
	u32 *named, hash = seed;

	if (packet->protocol != IPPROTO_UDP || !settings->quic_scheme || !read_connection_id(packet, settings, &key))
		return 0;
	if (settings->quic_scheme == QUIC_SERVER_ID) {
		named = quic_servers.lookup(&key);
		return named && !is_unavailable(*named) ? *named : 0;
	}
#pragma unroll
	for (u32 i = 0; i < MAX_QUIC_ID_BYTES / 4; i++)
		hash = mix(hash, ((u32 *)key.id)[i]);
	return service->slot_count ? backend_of_slot(service, avalanche(hash) % service->slot_count) : 0;
}
#endif
