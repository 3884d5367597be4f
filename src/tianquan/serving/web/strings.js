/**
 * Every word of the page, in English and Chinese. `{name}` is a place for a value.
 */

const STRINGS = {
  conversations: ["Conversations", "对话列表"],
  openConversations: ["Show conversations", "显示对话列表"],
  closeConversations: ["Hide conversations", "隐藏对话列表"],
  newConversation: ["New conversation", "新对话"],
  untitled: ["New conversation", "新对话"],
  picturesTitle: ["A picture", "一张图片"],
  soundTitle: ["A recording", "一段录音"],
  videoTitle: ["A video", "一段视频"],
  keptHere: ["Kept in this browser only", "对话只保存在此浏览器"],
  notKept: [
    "This browser refuses to keep data: conversations end with this page.",
    "此浏览器不允许保存数据，关闭页面后对话会丢失。",
  ],
  keepFailed: [
    "The conversation could not be kept: the browser's storage is full or switched off.",
    "对话无法保存：浏览器存储空间已满或被禁用。",
  ],
  switchLanguage: ["中文", "English"],
  switchTheme: ["Theme: {theme}", "主题：{theme}"],
  themeSystem: ["as the system", "跟随系统"],
  themeLight: ["light", "浅色"],
  themeDark: ["dark", "深色"],
  skipToQuestion: ["Skip to the question", "跳到输入框"],
  model: ["Model", "模型"],
  toEnd: ["To the newest message", "回到最新消息"],
  dropHere: ["Drop pictures, sound or video here", "将图片、音频或视频拖到这里"],
  rename: ["Rename", "重命名"],
  remove: ["Delete", "删除"],
  saveMarkdown: ["Export as Markdown", "导出为 Markdown"],
  saveJson: ["Export as JSON", "导出为 JSON"],
  actionsOf: ["Actions for “{title}”", "“{title}”的操作"],
  removed: ["Deleted “{title}”", "已删除“{title}”"],
  laterRemoved: ["Later messages were removed", "后面的消息已移除"],
  undo: ["Undo", "撤销"],
  close: ["Close", "关闭"],
  cancel: ["Cancel", "取消"],
  busyElsewhere: ["This conversation is being answered in another tab.", "此对话正在另一个标签页中生成回答。"],

  welcome: ["What would you like to know?", "想了解什么？"],
  welcomeMore: [
    "Ask about text, pictures, sound or video. Everything stays on the machine that runs this server.",
    "可以询问文字、图片、声音或视频。所有内容都留在运行此服务的机器上。",
  ],
  tryPicture: ["Ask about a picture", "询问一张图片"],
  tryPictureMore: ["Photos, documents, tables, screenshots", "照片、文档、表格、截图"],
  trySpeak: ["Speak", "用语音提问"],
  trySpeakMore: ["Record a question and see it", "录下问题，看到波形"],
  trySound: ["Ask about a recording", "询问一段录音"],
  trySoundMore: ["WAV, MP3, M4A, OGG, FLAC", "WAV、MP3、M4A、OGG、FLAC"],
  tryWrite: ["Write something", "写点什么"],
  tryWriteMore: ["A mail, a summary, a bit of code", "邮件、摘要、一小段代码"],
  describePicture: ["Describe this picture.", "请描述这张图片。"],
  describeSound: ["What is said in this recording?", "这段录音说了什么？"],
  writeExample: [
    "Write a short, friendly mail that moves a meeting from Tuesday to Thursday.",
    "写一封简短友好的邮件，把周二的会议改到周四。",
  ],

  question: ["Message", "消息"],
  ask: ["Ask anything", "输入问题"],
  askMedia: ["Ask about it, or just send", "就此提问，或直接发送"],
  keysHint: ["Enter sends · Shift+Enter new line · Esc stops", "Enter 发送 · Shift+Enter 换行 · Esc 停止"],
  attach: ["Add pictures, sound or video", "添加图片、音频或视频"],
  record: ["Record sound", "录音"],
  finishRecording: ["Finish recording", "结束录音"],
  cancelRecording: ["Discard recording", "放弃录音"],
  recording: ["Recording", "正在录音"],
  send: ["Send", "发送"],
  stop: ["Stop", "停止"],
  removeAttachment: ["Remove {name}", "移除 {name}"],
  reading: ["Reading {name}", "正在读取 {name}"],
  recordingName: ["recording", "录音"],
  pastedName: ["pasted picture", "粘贴的图片"],
  pictureShrunk: ["Made smaller: {from} → {to}", "已缩小：{from} → {to}"],
  pictureShrunkFile: ["Compressed to keep the request small", "已压缩以减小请求"],
  openPicture: ["Show {name} in full", "查看大图：{name}"],
  playSound: ["Play {name}", "播放 {name}"],
  pauseSound: ["Pause {name}", "暂停 {name}"],
  position: ["Position in {name}", "{name} 的播放位置"],
  noWaveform: ["This browser cannot play this format; it is sent as it is.", "此浏览器无法播放该格式，将按原样发送。"],
  soundParts: ["Longer than 30 s: sent in parts", "超过 30 秒：分段发送"],
  soundCut: ["Recording ended at {duration}", "录音在 {duration} 处结束"],
  transcribe: ["Transcribe", "转写"],
  transcribing: ["Transcribing…", "正在转写…"],
  transcript: ["Transcript", "转写文本"],
  emptyTranscript: ["No words were heard.", "没有听到文字。"],

  you: ["You", "你"],
  assistant: ["Answer", "回答"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  edit: ["Edit", "编辑"],
  regenerate: ["Answer again", "重新回答"],
  tryAgain: ["Try again", "重试"],
  saveEdit: ["Send again", "重新发送"],
  editLabel: ["Edit message", "编辑消息"],
  code: ["Code", "代码"],
  copyCode: ["Copy code", "复制代码"],
  table: ["Table", "表格"],
  waiting: ["Thinking", "思考中"],
  waitingPicture: ["Looking", "正在看图"],
  waitingSound: ["Listening", "正在听"],
  stopped: ["Stopped", "已停止"],
  interrupted: ["Interrupted", "已中断"],
  cutAtLength: ["Cut off: the limit of tokens was reached", "已截断：达到了长度上限"],
  emptyAnswer: ["The model answered with nothing.", "模型没有给出回答。"],
  answerBegins: ["The answer is being written", "正在生成回答"],

  firstToken: ["first token {value}", "首字 {value}"],
  rate: ["{value} tokens/s", "{value} 词元/秒"],
  tokensInOut: ["{in} → {out} tokens", "{in} → {out} 词元"],
  cachedShort: ["{value} cached", "缓存 {value}"],
  details: ["Details of the answer", "回答的详细数据"],
  promptTokens: ["Tokens read", "读入词元"],
  cachedTokens: ["of them from the cache", "其中来自缓存"],
  imageTokens: ["of them pictures", "其中图片"],
  audioTokens: ["of them sound", "其中声音"],
  videoTokens: ["of them video", "其中视频"],
  completionTokens: ["Tokens written", "写出词元"],
  timeToFirst: ["Time to first token", "首词元时间"],
  timeQueue: ["Waiting in the queue", "排队"],
  timeVision: ["Looking at pictures", "看图"],
  timeAudio: ["Listening to sound", "听音"],
  timePrompt: ["Reading the prompt", "读取提示"],
  timeTotal: ["Total time", "总时间"],
  speed: ["Speed", "速度"],
  contextUsed: ["{used} of {size} tokens of context used", "上下文已用 {used} / {size} 词元"],
  contextUsedOnly: ["{used} tokens of context used", "上下文已用 {used} 词元"],

  settings: ["Settings", "设置"],
  settingsMore: [
    "For this conversation and for new ones. Empty means the server's default.",
    "用于此对话及新对话。留空则使用服务器默认值。",
  ],
  systemPrompt: ["System prompt", "系统提示词"],
  systemPromptMore: ["How the model should behave, in every turn.", "希望模型在每一轮如何表现。"],
  temperature: ["Temperature", "温度"],
  temperatureMore: ["0 always takes the likeliest word; higher is freer.", "0 总是选最可能的词；越高越自由。"],
  topP: ["Top p", "Top p"],
  topPMore: ["Chooses among the likeliest words up to this share.", "只在累计概率达到该值的词中选择。"],
  maxTokens: ["Longest answer", "最长回答"],
  maxTokensMore: ["In tokens.", "以词元计。"],
  seed: ["Seed", "随机种子"],
  seedMore: ["The same number gives the same answer.", "相同的数字给出相同的回答。"],
  detail: ["Look at pictures", "看图方式"],
  detailMore: ["Close looks read small print; the overview is several times faster.", "细看能读小字；只看整体快数倍。"],
  detailAuto: ["As the server decides", "由服务器决定"],
  detailHigh: ["Closely", "细看"],
  detailLow: ["Overview only", "只看整体"],
  reset: ["Reset", "恢复默认"],
  save: ["Save", "保存"],
  notInRange: ["Expected a number from {low} to {high}.", "请输入 {low} 到 {high} 之间的数字。"],

  keyTitle: ["This server asks for a key", "此服务器需要密钥"],
  keyMore: [
    "Whoever runs it has given it to you. It is kept until this tab closes.",
    "请向服务器管理者索取。密钥只保留到此标签页关闭。",
  ],
  keyRejected: ["The server did not accept this key.", "服务器不接受此密钥。"],
  key: ["Key", "密钥"],
  continue: ["Continue", "继续"],

  loading: ["The model is loading…", "模型正在加载…"],
  unreachable: ["The server does not answer. Trying again…", "服务器没有响应，正在重试…"],
  errorNetwork: ["The server cannot be reached. Is it running?", "无法连接服务器，它在运行吗？"],
  errorBroken: ["The connection ended in the middle of the answer.", "连接在回答中途断开。"],
  errorUnsent: [
    "The browser could not send this. A file may have been moved or changed; take it again.",
    "浏览器无法发送。文件可能已被移动或更改，请重新选择。",
  ],
  errorKey: ["The server needs a key.", "服务器需要密钥。"],
  errorLarge: [
    "This is more than the server takes at once. Send fewer or smaller pictures, or shorter sound or video.",
    "超过服务器一次能接收的大小。请减少或缩小图片，或缩短音频和视频。",
  ],
  errorBusy: ["The server is busy.", "服务器繁忙。"],
  errorBusyFor: ["The server is busy. Try again in {seconds} s.", "服务器繁忙，请 {seconds} 秒后重试。"],
  errorLoading: ["The model is still loading. Try again in a moment.", "模型仍在加载，请稍后重试。"],
  errorModel: ["The server does not have this model.", "服务器没有这个模型。"],
  errorRequest: ["The server could not take this request.", "服务器无法接受此请求。"],
  errorServer: ["Something went wrong in the server.", "服务器内部出错。"],
  errorPicture: ["{name} is not a picture this browser can read.", "{name} 不是此浏览器能读取的图片。"],
  notSent: ["Nothing was sent, since a file could not be read.", "有文件无法读取，消息未发送。"],
  lostMedium: ["[{name} is no longer there]", "[{name} 已不存在]"],
  errorKind: ["{name} is neither a picture nor sound nor video.", "{name} 不是图片、音频或视频。"],
  errorMicrophone: ["The microphone cannot be used: {reason}", "无法使用麦克风：{reason}"],
  microphoneDenied: ["the browser was not allowed to.", "浏览器没有获得许可。"],
  microphoneMissing: ["none was found.", "没有找到麦克风。"],
  microphoneInsecure: [
    "recording needs https or this machine's own address (localhost). Drop a sound file instead.",
    "录音需要 https 或本机地址（localhost）。请改为拖入音频文件。",
  ],
  microphoneEmpty: ["nothing was recorded.", "没有录到声音。"],
};

const LANGUAGES = ["en", "zh"];
let language = 0;

/** @returns {"en"|"zh"} the page's language. */
export function currentLanguage() {
  return LANGUAGES[language];
}

/**
 * Choose the language, here and for the document.
 * @param {"en"|"zh"} name - the language.
 */
export function useLanguage(name) {
  language = Math.max(0, LANGUAGES.indexOf(name));
  document.documentElement.lang = language === 0 ? "en" : "zh-CN";
}

/** @returns {"en"|"zh"} the language of the browser, as far as the page speaks it. */
export function browserLanguage() {
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

/**
 * Return a string of the page.
 * @param {keyof typeof STRINGS} key - which one.
 * @param {Object<string, string|number>} [values] - for the places in braces.
 * @returns {string} the string in the page's language.
 */
export function say(key, values = {}) {
  const string = STRINGS[key];
  if (string === undefined) throw new Error(`no string named ${key}`);
  return string[language].replace(/\{(\w+)\}/g, (place, name) => String(values[name] ?? place));
}

/** Fill the strings of the elements in index.html that name them in `data-text` and `data-label`. */
export function fillStrings() {
  for (const node of document.querySelectorAll("[data-text]")) {
    const place = node.querySelector(":scope > .label") ?? node;
    place.textContent = say(node.dataset.text);
  }
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", say(node.dataset.label));
    if (node.tagName === "BUTTON") node.title = say(node.dataset.label);
  }
}

/**
 * @param {number} milliseconds - a time span.
 * @returns {string} as people read it: 340 ms, 2.4 s, 1 min 05 s.
 */
export function timeSpan(milliseconds) {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 60_000) return `${(milliseconds / 1000).toFixed(1)} s`;
  const seconds = Math.round(milliseconds / 1000);
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

/**
 * @param {number} seconds - length of a recording.
 * @returns {string} as players show it: 0:07.
 */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/**
 * @param {number} value - a count.
 * @returns {string} with the language's separators.
 */
export function count(value) {
  return value.toLocaleString(currentLanguage() === "zh" ? "zh-CN" : "en");
}
