// Times, sizes and counts as people read them.

/** How long something takes: "under a second", "12 s", "3 min 20 s", "2 h 10 min", "3 days 4 h". */
export function lasting(seconds) {
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = seconds / 60;
  if (minutes < 10) return two(Math.floor(minutes), "min", Math.round(seconds - 60 * Math.floor(minutes)), "s");
  if (minutes < 60) return `${Math.round(minutes)} min`;
  const hours = minutes / 60;
  if (hours < 24) return two(Math.floor(hours), "h", Math.round(minutes - 60 * Math.floor(hours)), "min");
  const days = Math.floor(hours / 24);
  return two(days, days === 1 ? "day" : "days", Math.round(hours - 24 * days), "h");
}

const two = (many, unit, few, smaller) => (few ? `${many} ${unit} ${few} ${smaller}` : `${many} ${unit}`);

/** Seconds a frame: "0.034 s", "2.1 s", "3 min 20 s". */
export function aFrame(seconds) {
  if (seconds >= 90) return lasting(seconds);
  return `${seconds < 0.1 ? seconds.toFixed(3) : seconds < 10 ? seconds.toFixed(2) : seconds.toFixed(0)} s`;
}

/** A time in the film: 0:01.250, 1:02:03.500. */
export function clock(seconds, digits = 2) {
  const unit = 10 ** digits;
  const whole = Math.round(seconds * unit) / unit;
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  const left = (whole - 3600 * hours - 60 * minutes).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${left}` : `${minutes}:${left}`;
}

/** What someone typed as a time: "65.5", "1:05.5", "1:02:03"; null where it is none. */
export function typedTime(text) {
  const match = /^(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:[.,]\d*)?)$/.exec(text.trim());
  if (!match) return null;
  return Number(match[1] ?? 0) * 3600 + Number(match[2] ?? 0) * 60 + Number(match[3].replace(",", "."));
}

/** Bytes: "812 B", "3.4 MB". */
export function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  for (; size >= 1000 && place < units.length - 1; place += 1) size /= 1000;
  return `${size < 10 && place ? size.toFixed(1) : Math.round(size)} ${units[place]}`;
}

export const percent = (share) => `${Math.floor(100 * share + 1e-9)} %`;

export const grouped = (number) => number.toLocaleString("en-US");

/** The last part of a path, of any system. */
export const lastOf = (path) => path.split(/[\\/]/).filter(Boolean).pop() ?? path;

/** A setting's name as people say it: noise_level is "Noise level". */
export function spoken(name) {
  const known = { crf: "CRF", fps: "Frame rate", vae: "Decoder", vae_attention: "Decoder's attention", dtype: "Precision", pix_fmt: "Pixel format" };
  const words = name.replaceAll("_", " ");
  return known[name] ?? words[0].toUpperCase() + words.slice(1);
}
