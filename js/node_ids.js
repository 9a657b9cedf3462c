/**
 * The ids of this pack's nodes. How an id begins does not tell whose it is: core has a QwenImage21Cache. A test compares
 * the list with nodes/__init__.py.
 */
export const NODE_IDS = new Set([
  "QwenImage2ComicBrief",
  "QwenImage2CropForEdit",
  "QwenImage2DeckOutline",
  "QwenImage2EditEncode",
  "QwenImage2EmptyLatent",
  "QwenImage2ExtendCanvas",
  "QwenImage2GlyphReference",
  "QwenImage2InfographicBrief",
  "QwenImage2LoadEnhancer",
  "QwenImage2LoadLoRA",
  "QwenImage2LoadModel",
  "QwenImage2LoadTextEncoder",
  "QwenImage2LoadVAE",
  "QwenImage2Loader",
  "QwenImage2Memory",
  "QwenImage2PickBest",
  "QwenImage2PosterBrief",
  "QwenImage2PromptEnhance",
  "QwenImage2Sampler",
  "QwenImage2SaveDeck",
  "QwenImage2SaveQuantized",
  "QwenImage2Sigmas",
  "QwenImage2SlideBrief",
  "QwenImage2StitchEdit",
  "QwenImage2TextCheck",
  "QwenImage2TextEncode",
  "QwenImage2VAEDecode",
  "QwenImage2VAEEncode",
]);
