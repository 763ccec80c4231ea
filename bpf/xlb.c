/* The data plane's entry. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include "maps.h"

int xlb(struct xdp_md *context)
{
	u32 zero = 0;
	struct lease *held = lease.lookup(&zero);

	if (!held)
		return XDP_ABORTED;
	return XDP_PASS;
}
