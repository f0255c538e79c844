// Loads a folder of target transformers-js with transformers.js, offline, and answers one JSON request a line.
// Arguments: the folder, and the option `dtype`. The package is looked up from the working directory and NODE_PATH.
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

const require = createRequire(join(process.cwd(), 'clipedit.js'))
const { env, AutoProcessor, AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, RawImage, Tensor } =
  require('@huggingface/transformers')
const [folder, dtype] = process.argv.slice(2)
env.allowRemoteModels = false
env.localModelPath = '' // The folder is an absolute path.

// The default level can crash the CPU provider in half precision.
const options = { dtype, device: 'cpu', session_options: { graphOptimizationLevel: dtype === 'fp16' ? 'extended' : 'all' } }
const tokenizer = await AutoTokenizer.from_pretrained(folder)
const processor = await AutoProcessor.from_pretrained(folder)
const visual = await CLIPVisionModelWithProjection.from_pretrained(folder, options)
const textual = await CLIPTextModelWithProjection.from_pretrained(folder, options)

async function answer (request) {
  if (request.texts) {
    return (await textual(await tokenizer(request.texts, { padding: true, truncation: true }))).text_embeds.tolist()
  }
  if (request.images) {
    const images = await Promise.all(request.images.map(path => RawImage.read(path)))
    return (await visual(await processor(images))).image_embeds.tolist()
  }
  const bytes = Buffer.from(request.pixels, 'base64')
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  return (await visual({ pixel_values: new Tensor('float32', values, request.shape) })).image_embeds.tolist()
}

console.log(JSON.stringify({ version: env.version }))
for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await answer(JSON.parse(line))))
}
