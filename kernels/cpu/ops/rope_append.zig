//! Splits qkv, rotates q and k and appends k and v to the paged cache. Each row stands alone.
const types = @import("../../abi/types.zig");
const simd = @import("../simd.zig");
const kernel_mod = @import("../kernel.zig");
const layout = @import("../layout.zig");

const Desc = types.RopeAppendDesc;
const W = simd.W;

pub const rope_append: kernel_mod.Kernel = kernel_mod.kernel(Desc, &.{Rows});

/// Elements of qkv that make an item worth claiming.
const item_elements = 2048;

/// Largest head dim whose rotated row fits on the stack.
const max_head_dim = 256;

const Rows = struct {
    pub fn plan(desc: *Desc, _: u32) u32 {
        const rows = desc.qkv.shape[0];
        const size = rowsPerItem(desc);
        return (rows + size - 1) / size;
    }

    pub fn run(desc: *const Desc, item: u32, _: *const kernel_mod.Scratch) void {
        const size = rowsPerItem(desc);
        const first = item * size;
        for (first..@min(first + size, desc.qkv.shape[0])) |row| appendRow(desc, row);
    }
};

fn rowsPerItem(desc: *const Desc) u32 {
    return @max(item_elements / desc.qkv.shape[1], 1);
}

fn appendRow(desc: *const Desc, row: usize) void {
    const sequence = kernel_mod.pointer(i32, desc.row_seq)[row];
    if (sequence < 0) return;
    const d = desc.cache.head_dim;
    const kv_heads = desc.cache.kv_heads;
    const heads = desc.q.shape[1];
    const qkv = kernel_mod.pointer(u16, desc.qkv) + row * desc.qkv.shape[1];
    const rope = kernel_mod.pointer(f32, desc.rope) + row * d;
    const q = kernel_mod.pointer(u16, desc.q) + row * heads * d;
    for (0..heads) |h| rotate(qkv + h * d, rope, d, q + h * d);
    if (kernel_mod.optional(u16, desc.q_sink)) |q_sinks| {
        const rope_sink = kernel_mod.pointer(f32, desc.rope_sink) + row * d;
        const q_sink = q_sinks + row * heads * d;
        for (0..heads) |h| rotate(qkv + h * d, rope_sink, d, q_sink + h * d);
    }
    const position: u32 = @intCast(kernel_mod.pointer(i32, desc.positions)[row]);
    const table = kernel_mod.pointer(i32, desc.block_table);
    const first_page = @as(usize, @intCast(sequence)) * desc.block_table.shape[1];
    const page: u32 = @intCast(table[first_page + position / desc.cache.page_size]);
    const token = position % desc.cache.page_size;
    for (0..kv_heads) |head| {
        var k: [max_head_dim]u16 align(4) = undefined;
        rotate(qkv + (heads + head) * d, rope, d, &k);
        storeK(desc, page, token, @intCast(head), &k);
        storeV(desc, page, token, @intCast(head), qkv + (heads + kv_heads + head) * d);
    }
}

/// out = x rotated by the angles whose d / 2 cosines and d / 2 sines `rope` holds; element i pairs
/// with i + d / 2.
fn rotate(x: [*]const u16, rope: [*]const f32, d: u32, out: [*]u16) void {
    const half = d / 2;
    var i: u32 = 0;
    while (i < half) : (i += W) {
        const cos = simd.loadF(rope + i);
        const sin = simd.loadF(rope + half + i);
        const a = simd.loadBf16(x + i);
        const b = simd.loadBf16(x + half + i);
        simd.storeBf16(out + i, a * cos - b * sin);
        simd.storeBf16(out + half + i, b * cos + a * sin);
    }
}

/// A token's pairs lie one row of the K tile apart.
fn storeK(
    desc: *const Desc,
    page: u32,
    token: u32,
    head: u32,
    k: *align(4) const [max_head_dim]u16,
) void {
    const d = desc.cache.head_dim;
    const block = layout.kvBlock(desc.cache, desc.layer, page, 0, head);
    const out: [*]u32 = @ptrCast(@alignCast(block + layout.kOffset(token, 0, d)));
    const pairs: [*]const u32 = @ptrCast(k);
    for (0..d / 2) |pair| out[pair * layout.tile] = pairs[pair];
}

/// Two tokens alternate in a V row; only this one's elements are written.
fn storeV(desc: *const Desc, page: u32, token: u32, head: u32, v: [*]const u16) void {
    const d = desc.cache.head_dim;
    const out = layout.kvBlock(desc.cache, desc.layer, page, 1, head) + layout.vOffset(token, 0, d);
    for (0..d) |i| out[2 * i] = v[i];
}
