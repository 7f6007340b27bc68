// What the memories of a GPU deliver at most, for machine.py (compiled there by NVRTC).

// Sums of random rows of x, `width` float4 each: teams of up to 32 lanes take `per` rows one after the other, eight in
// flight. Past L1 (__ldcg), so that what is measured is L2, or device memory where x does not fit there.
extern "C" __global__ void gather(const float4* x, const int* index, float4* out, int per, int width) {
  const int lanes = width < 32 ? width : 32;
  const int thread = blockIdx.x * blockDim.x + threadIdx.x;
  const int* mine = index + static_cast<long long>(thread / lanes) * per;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int j = thread % lanes; j < width; j += lanes) {
    for (int i = 0; i < per; i += 8) {
      float4 row[8];
#pragma unroll
      for (int u = 0; u < 8; ++u) row[u] = __ldcg(x + static_cast<long long>(mine[i + u]) * width + j);
#pragma unroll
      for (int u = 0; u < 8; ++u) {
        sum.x += row[u].x;
        sum.y += row[u].y;
        sum.z += row[u].z;
        sum.w += row[u].w;
      }
    }
  }
  out[thread] = sum;
}

// Multiply-adds of which each takes one word from shared memory, as those of unstructured weights do.
extern "C" __global__ void operand(float* out, int rounds) {
  extern __shared__ float4 tile[];  // 1024
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) tile[i] = make_float4(i, 1, 2, 3);
  __syncthreads();
  float4 sum[4] = {};
  float w = threadIdx.x * 1e-6f;
  for (int r = 0; r < rounds; ++r) {
    const float4* row = tile + (r * 160 & 511) + threadIdx.x % 32;
#pragma unroll
    for (int u = 0; u < 16; ++u) {
      const float4 v = row[u * 32 & 511];
      sum[u & 3].x += w * v.x;
      sum[u & 3].y += w * v.y;
      sum[u & 3].z += w * v.z;
      sum[u & 3].w += w * v.w;
    }
    w += 1e-6f;
  }
  for (int u = 1; u < 4; ++u) sum[0].x += sum[u].x + sum[u].y + sum[u].z + sum[u].w;
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum[0].x + sum[0].y + sum[0].z + sum[0].w;
}

#if __CUDA_ARCH__ >= 900

// Adds to random rows of y, `width` float4 each, by vector atomics in L2; the teams are those of gather.
extern "C" __global__ void scatter(float4* y, const int* index, int per, int width) {
  const int lanes = width < 32 ? width : 32;
  const int thread = blockIdx.x * blockDim.x + threadIdx.x;
  const int* mine = index + static_cast<long long>(thread / lanes) * per;
  for (int j = thread % lanes; j < width; j += lanes) {
    for (int i = 0; i < per; ++i) {
      float4* at = y + static_cast<long long>(mine[i]) * width + j;
      asm volatile("red.global.add.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(at), "f"(1.0f) : "memory");
    }
  }
}

// Copies random rows of x, `bytes` each (a multiple of 16), into shared memory by cp.async.bulk: a warp to a block, a
// row to a lane, two turns of 32 rows in flight. Each lane gives the sum of the first word of its last two rows, or NaN
// where a copy does not arrive.
extern "C" __global__ void bulk(const char* x, const int* index, float* out, int per, int bytes) {
  extern __shared__ __align__(128) char rows[];  // [2][32][bytes], then two barriers
  const int lane = threadIdx.x;
  const int* mine = index + static_cast<long long>(blockIdx.x) * per;
  const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(rows));
  const unsigned barrier = base + 64 * bytes;
  if (lane == 0) {
    for (int s = 0; s < 2; ++s) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier + 8 * s));
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncwarp();
  float sum = 0;
  const int turns = per / 32;
  for (int t = 0; t < turns + 2; ++t) {
    const int s = t & 1;
    if (t >= 2) {  // the turn before last is there
      const unsigned parity = (t / 2 - 1) & 1;
      unsigned done = 0;
      for (int tries = 0; tries < 1 << 20 && !done; ++tries) {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
            : "=r"(done)
            : "r"(barrier + 8 * s), "r"(parity)
            : "memory");
      }
      if (!done) sum = __int_as_float(0x7fffffff);
      if (t >= turns) sum += *reinterpret_cast<const float*>(rows + (32 * s + lane) * bytes);
    }
    if (t < turns) {
      if (lane == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier + 8 * s), "r"(32 * bytes)
                     : "memory");
      }
      __syncwarp();
      const char* from = x + static_cast<long long>(mine[32 * t + lane]) * bytes;
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                       base + (32 * s + lane) * bytes),
                   "l"(from), "r"(bytes), "r"(barrier + 8 * s)
                   : "memory");
    }
  }
  out[32 * blockIdx.x + lane] = sum;
}

#endif
