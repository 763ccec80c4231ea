/* Both ends of short TCP connections without a TCP stack: connect, request, response, close, in six segments. bench/wire/short.py
 * attaches `ask` to the client's interface and `reply` to the servers', and starts some connections with `open`. Each one that is
 * closed starts the next, until there were `limit` on a CPU. Neither end remembers anything: what is answered follows from the segment.
 */
#include <uapi/linux/bpf.h>

#define HEADERS_BYTES (14 + 20 + 20)
#define FRAME_BYTES (HEADERS_BYTES + DATA_BYTES)
#define FIRST_SEQUENCE 1000
#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define PSH 0x08
#define ACK 0x10

struct plan {
	u64 first; /* flow */
	u64 limit; /* connections of one CPU */
	u32 vip;
	u8 macs[12];
};

struct segment {
	u32 source, destination; /* addresses and ports in the order of the host */
	u16 source_port, destination_port;
	u32 sequence, acknowledged;
	u32 data_bytes;
	u8 flags;
};

enum counter {
	STARTED,
	ANSWERED, /* the response is complete */
	CLOSED,
	RESET,
	COUNTERS,
};

BPF_ARRAY(plans, struct plan, 1);
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);

static __always_inline u64 count(u32 counter)
{
	u64 *number = counters.lookup(&counter);

	return number ? (*number)++ : 0;
}

static __always_inline u16 get16(u8 *at)
{
	return at[0] << 8 | at[1];
}

static __always_inline u32 get32(u8 *at)
{
	return (u32)get16(at) << 16 | get16(at + 2);
}

static __always_inline void put16(u8 *at, u16 value)
{
	*(u16 *)at = __builtin_bswap16(value);
}

static __always_inline void put32(u8 *at, u32 value)
{
	*(u32 *)at = __builtin_bswap32(value);
}

static __always_inline u32 halves(u32 value)
{
	return (value >> 16) + (value & 0xffff);
}

static __always_inline u16 folded(u32 sum)
{
	sum = halves(sum);
	return ~halves(sum);
}

/* False: not a segment of these connections. */
static __always_inline bool parse(struct xdp_md *context, struct segment *segment)
{
	u8 *frame = (void *)(long)context->data;

	if (frame + HEADERS_BYTES > (u8 *)(long)context->data_end || get16(frame + 12) != 0x0800 || frame[14] != 0x45 ||
	    frame[23] != 6)
		return false;
	u8 *tcp = frame + 34;

	segment->source = get32(frame + 26);
	segment->destination = get32(frame + 30);
	segment->source_port = get16(tcp);
	segment->destination_port = get16(tcp + 2);
	segment->sequence = get32(tcp + 4);
	segment->acknowledged = get32(tcp + 8);
	segment->flags = tcp[13];
	segment->data_bytes = get16(frame + 16) - 20 - (tcp[12] >> 4) * 4;
	return true;
}

/* Makes the frame this segment, from one MAC address to the other. data: with the payload. */
static __always_inline bool write(struct xdp_md *context, const struct segment *segment, bool data)
{
	long missing = FRAME_BYTES - ((long)context->data_end - (long)context->data);

	if (missing && bpf_xdp_adjust_tail(context, missing))
		return false;
	u8 *frame = (void *)(long)context->data;

	if (frame + FRAME_BYTES > (u8 *)(long)context->data_end)
		return false;
	u8 *ip = frame + 14, *tcp = frame + 34;
	u32 length = data ? 40 + DATA_BYTES : 40;
	u32 sum = 0x4500 + length + 0x4000 + 0x4006 + halves(segment->source) + halves(segment->destination);

	put16(frame + 12, 0x0800);
	put16(ip, 0x4500);
	put16(ip + 2, length);
	put32(ip + 4, 0x4000);
	put16(ip + 8, 0x4006);
	put16(ip + 10, folded(sum));
	put32(ip + 12, segment->source);
	put32(ip + 16, segment->destination);
	put16(tcp, segment->source_port);
	put16(tcp + 2, segment->destination_port);
	put32(tcp + 4, segment->sequence);
	put32(tcp + 8, segment->acknowledged);
	put16(tcp + 12, 0x5000 | segment->flags);
	put16(tcp + 14, 0xffff);
	put32(tcp + 16, 0);
	sum = halves(segment->source) + halves(segment->destination) + 6 + length - 20;
	sum += segment->source_port + segment->destination_port + halves(segment->sequence) + halves(segment->acknowledged);
	sum += (0x5000 | segment->flags) + 0xffff;
	if (data) {
		/* DATA_BYTES are even, and all bytes are the same */
		__builtin_memset(frame + HEADERS_BYTES, 'x', DATA_BYTES);
		sum += DATA_BYTES / 2 * ('x' << 8 | 'x');
	}
	put16(tcp + 16, folded(sum));
	return true;
}

static __always_inline int send_back(struct xdp_md *context, const struct segment *came, u8 flags, u32 sequence,
				     u32 acknowledged, bool data)
{
	struct segment goes = {
		.source = came->destination,
		.destination = came->source,
		.source_port = came->destination_port,
		.destination_port = came->source_port,
		.sequence = sequence,
		.acknowledged = acknowledged,
		.flags = flags,
	};
	u8 kept[6], *frame = (void *)(long)context->data;

	if (!write(context, &goes, data))
		return XDP_ABORTED;
	frame = (void *)(long)context->data;
	if (frame + 12 > (u8 *)(long)context->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(kept, frame, 6);
	__builtin_memcpy(frame, frame + 6, 6);
	__builtin_memcpy(frame + 6, kept, 6);
	return bpf_redirect(context->ingress_ifindex, 0); /* XDP_TX does not wake the other end, if that has no program */
}

/* The frame becomes the first one of a new connection. Each CPU numbers its own. */
static __always_inline bool begin(struct xdp_md *context)
{
	int zero = 0;
	struct plan *plan = plans.lookup(&zero);

	if (!plan)
		return false;
	u64 number = count(STARTED);

	if (number >= plan->limit)
		return false;
	struct segment first = {
		.source = FIRST_SOURCE + plan->first + number + ((u64)bpf_get_smp_processor_id() << 20),
		.destination = plan->vip,
		.source_port = 1024 + number % 64512,
		.destination_port = SERVICE_PORT,
		.sequence = FIRST_SEQUENCE,
		.flags = SYN,
	};

	if (!write(context, &first, false))
		return false;
	u8 *frame = (void *)(long)context->data;

	if (frame + 12 > (u8 *)(long)context->data_end)
		return false;
	__builtin_memcpy(frame, plan->macs, 12);
	return true;
}

int open(struct xdp_md *context)
{
	return begin(context) ? XDP_TX : XDP_DROP;
}

int ask(struct xdp_md *context)
{
	struct segment came;

	if (!parse(context, &came) || came.source_port != SERVICE_PORT)
		return XDP_PASS;
	if (came.flags & RST) {
		count(RESET);
		return XDP_DROP;
	}
	if (came.flags & SYN)
		return send_back(context, &came, PSH | ACK, came.acknowledged, came.sequence + 1, true);
	if (came.flags & FIN) {
		count(ANSWERED);
		return send_back(context, &came, FIN | ACK, came.acknowledged, came.sequence + came.data_bytes + 1, false);
	}
	if (came.acknowledged != FIRST_SEQUENCE + 1 + DATA_BYTES + 1)
		return XDP_DROP;
	count(CLOSED);
	return begin(context) ? bpf_redirect(context->ingress_ifindex, 0) : XDP_DROP;
}

int reply(struct xdp_md *context)
{
	struct segment came;

	if (!parse(context, &came) || came.destination_port != SERVICE_PORT)
		return XDP_PASS;
	if (came.flags & RST)
		return XDP_DROP;
	if (came.flags & SYN)
		return send_back(context, &came, SYN | ACK, FIRST_SEQUENCE, came.sequence + 1, false);
	if (came.data_bytes)
		return send_back(context, &came, PSH | FIN | ACK, came.acknowledged, came.sequence + came.data_bytes, true);
	if (came.flags & FIN)
		return send_back(context, &came, ACK, came.acknowledged, came.sequence + 1, false);
	return XDP_DROP;
}
