/* What bench.wire sends, forwards and counts. Compiled for one family: FRAME_BYTES, NETWORK_BYTES, the offsets of the fields
 * that vary, VIP_PORT and SERVER_PORT come from bench/wire/generator.py.
 */
#include <uapi/linux/bpf.h>

#define STEP 48271 /* a prime that no number of flows is a multiple of: successive flows are far apart in memory */
#define TRANSPORT_OFFSET (14 + NETWORK_BYTES)

/* The packets: flow `first` + 0 … `flows` - 1. sums: of the frame with zeros in place of what varies. */
struct plan {
	u64 first;
	u64 flows;
	u32 network_sum;
	u32 transport_sum;
	u8 frame[FRAME_BYTES];
};

struct hop {
	u32 interface; /* 0: the one that the frame came in by */
	u8 macs[12];
};

struct ports {
	u16 source;
	u16 destination;
};

enum counter {
	SENT,
	AT_SERVER,
	AT_CLIENT,
	COUNTERS,
};

BPF_ARRAY(plans, struct plan, 1);
BPF_ARRAY(hops, struct hop, 8); /* by the interface that a frame came in by */
BPF_PERCPU_ARRAY(position, u64, 1);
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);

static __always_inline void count(u32 counter)
{
	u64 *packets = counters.lookup(&counter);

	if (packets)
		(*packets)++;
}

static __always_inline u16 folded(u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Sends the next packet of the plan by the interface that the run names. */
int generate(struct xdp_md *context)
{
	u8 *frame = (void *)(long)context->data;
	int zero = 0;
	struct plan *plan = plans.lookup(&zero);
	u64 *number = position.lookup(&zero);

	if (!plan || !number || !plan->flows || frame + FRAME_BYTES > (u8 *)(long)context->data_end)
		return XDP_ABORTED;
	u64 flow = plan->first + (*number)++ * STEP % plan->flows;
	u32 address = FIRST_SOURCE + flow;
	u16 port = 1024 + flow % 64512;
	u32 varied = (address & 0xffff) + (address >> 16);

	__builtin_memcpy(frame, plan->frame, FRAME_BYTES); /* pages are recycled as the last receiver left them */
	*(u32 *)(frame + SOURCE_OFFSET) = __builtin_bswap32(address);
	*(u16 *)(frame + TRANSPORT_OFFSET) = __builtin_bswap16(port);
	if (NETWORK_BYTES == 20)
		*(u16 *)(frame + 24) = __builtin_bswap16(folded(plan->network_sum + varied));
	*(u16 *)(frame + TRANSPORT_OFFSET + 6) = __builtin_bswap16(folded(plan->transport_sum + varied + port));
	count(SENT);
	return XDP_TX;
}

/* Whether this is a packet of the plan, and at which end it arrived. */
static __always_inline u32 arrived(struct xdp_md *context)
{
	u8 *frame = (void *)(long)context->data;

	if (frame + FRAME_BYTES > (u8 *)(long)context->data_end || frame[PROTOCOL_OFFSET] != 17)
		return COUNTERS;
	struct ports *ports = (void *)(frame + TRANSPORT_OFFSET);

	u16 source = __builtin_bswap16(ports->source), destination = __builtin_bswap16(ports->destination);

	if (destination >= SERVER_PORT && destination < SERVER_PORT + SERVER_PORTS)
		return AT_SERVER;
	return source >= VIP_PORT && source < SERVER_PORT + SERVER_PORTS ? AT_CLIENT : COUNTERS;
}

int receive(struct xdp_md *context)
{
	u32 end = arrived(context);

	if (end == COUNTERS)
		return XDP_PASS;
	count(end);
	return XDP_DROP;
}

/* As `receive`, and the server answers. Sums stay right when their summands change places. It redirects because the other end of
 * a veth that has no program, only joins frames, is not woken by XDP_TX.
 */
int answer(struct xdp_md *context)
{
	u8 *frame = (void *)(long)context->data;
	u32 end = arrived(context);
	u8 kept[16];

	if (end == COUNTERS)
		return XDP_PASS;
	count(end);
	if (end == AT_CLIENT || frame + FRAME_BYTES > (u8 *)(long)context->data_end)
		return XDP_DROP;
	__builtin_memcpy(kept, frame, 6);
	__builtin_memcpy(frame, frame + 6, 6);
	__builtin_memcpy(frame + 6, kept, 6);
	u8 *addresses = frame + ADDRESSES_OFFSET;

	__builtin_memcpy(kept, addresses, ADDRESS_BYTES);
	__builtin_memcpy(addresses, addresses + ADDRESS_BYTES, ADDRESS_BYTES);
	__builtin_memcpy(addresses + ADDRESS_BYTES, kept, ADDRESS_BYTES);
	struct ports *ports = (void *)(frame + TRANSPORT_OFFSET);
	u16 port = ports->source;

	ports->source = ports->destination;
	ports->destination = port;
	return bpf_redirect(context->ingress_ifindex, 0);
}

/* The ceiling: nothing but other MAC addresses and the redirect. */
int redirect(struct xdp_md *context)
{
	u8 *frame = (void *)(long)context->data;
	u32 from = context->ingress_ifindex;
	struct hop *hop = hops.lookup(&from);

	if (!hop || frame + 14 > (u8 *)(long)context->data_end)
		return XDP_ABORTED;
	if (*(u16 *)(frame + 12) == __builtin_bswap16(0x0806))
		return XDP_PASS;
	__builtin_memcpy(frame, hop->macs, 12);
	return hop->interface ? bpf_redirect(hop->interface, 0) : XDP_TX;
}
