// The search takes "-word" for "without word"; here it is how an option begins.
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message, ...more) {
  const query = message && message.data;
  const plain = typeof query === "string" ? { ...message, data: query.replace(/(^|\s)-+/g, "$1") } : message;
  return post.call(this, plain, ...more);
};
