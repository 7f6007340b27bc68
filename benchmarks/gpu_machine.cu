// What the memories of a GPU deliver at most, for gpu_machine.py (compiled there by NVRTC).

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
