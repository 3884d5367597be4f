"""What can be written in a picture: digits, English words, Chinese words, and the class of each character."""

from __future__ import annotations

import random

DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_ENGLISH = """
hello world open close stop start go yes no on off up down left right in out push pull help exit enter sale free
new old hot cold warm cool big small fast slow high low good bad happy sad day night sun moon star sky sea lake
river hill tree leaf flower grass bird cat dog fish horse cow pig sheep lion tiger bear wolf mouse bread milk
tea coffee water juice apple orange banana lemon grape peach rice egg meat soup cake sugar salt book pen paper
desk chair table door window wall floor room house home school shop bank hotel park road street bridge train bus
car bike ship plane taxi ticket time clock hour week month year today now soon later first last next one two
three four five six seven eight nine ten zero red green blue white black gold silver music song dance game ball
team play run walk jump swim read write speak listen look see hear think know learn teach work rest sleep wake
eat drink cook wash clean buy sell pay give take send mail phone call talk name word line page text image sound
voice light lamp fire ice snow rain wind storm cloud north south east west city town farm field forest beach
island mountain king queen man woman boy girl baby friend family mother father brother sister doctor nurse
police danger caution welcome thanks please sorry love peace hope dream luck gift party menu price size code
test data model print copy save file edit view quick brown fox over lazy zone box quiz jazz wave youth value
extra empty ready radio photo video cheese plate
"""
_CHINESE = """
你好 世界 谢谢 再见 中国 北京 上海 学校 老师 学生 朋友 家人 爸爸 妈妈 哥哥 姐姐 今天 明天 昨天 早上 晚上 中午
时间 春天 夏天 秋天 冬天 太阳 月亮 星星 天空 大海 高山 河流 花园 树木 小草 小鸟 小猫 小狗 金鱼 白马 牛奶 面包
米饭 苹果 香蕉 西瓜 茶水 咖啡 白糖 鸡蛋 书本 铅笔 桌子 椅子 门口 窗户 房间 电话 电脑 电视 手机 汽车 火车 飞机
公园 商店 银行 医院 酒店 饭店 出口 入口 小心 禁止 停车 开门 关门 欢迎 光临 新年 快乐 生日 平安 幸福 健康 成功
努力 学习 工作 休息 音乐 唱歌 跳舞 足球 篮球 游泳 跑步 画画 红色 黄色 蓝色 绿色 白色 黑色 一二三 四五六 七八九
东南 西北 左右 上下 前后 大小 多少 天气 下雨 下雪 刮风 安静 请进 加油 文字 图片 声音 语言 数字 名字 地图 票价
打开 关闭 圆形 方形 三角形 正方形 长方形 五角星 心形 橙色 紫色 粉色 灰色 棕色 青色 左边 右边 上面 下面 中间 零一二
"""
ENGLISH_WORDS = tuple(dict.fromkeys(_ENGLISH.split()))
CHINESE_WORDS = tuple(dict.fromkeys(_CHINESE.split()))

CHARACTERS = tuple(dict.fromkeys(DIGITS + LETTERS + "".join(sorted(set("".join(CHINESE_WORDS))))))
CHARACTER_CLASS = {character: n + 1 for n, character in enumerate(CHARACTERS)}  # 0 is the background

_CONSONANTS = "bcdfghjklmnprstvwxyz"
_VOWELS = "aeiou"


def sample_digits(rng: random.Random, length: int | None = None) -> str:
    """Return 1 to 4 digits; the first of several may be zero, but rarely."""
    length = length or rng.choice((1, 2, 2, 3, 3, 4, 4))
    digits = "".join(rng.choice(DIGITS) for _ in range(length))
    return digits if rng.random() < 0.15 or digits[0] != "0" else rng.choice(DIGITS[1:]) + digits[1:]


def sample_word(rng: random.Random) -> str:
    """Return an English word or, so that letters are read and not guessed, one that does not exist."""
    if rng.random() < 0.7:
        word = rng.choice(ENGLISH_WORDS)
    else:
        syllables = rng.choice((1, 2, 2, 3))
        word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))
        word += rng.choice(("", rng.choice(_CONSONANTS)))
    return word


def sample_line(rng: random.Random, language: str, num_words: int) -> str:
    """Return a line of words in one letter case; Chinese has no spaces."""
    if language == "zh":
        return "".join(rng.choice(CHINESE_WORDS) for _ in range(num_words))
    line = " ".join(sample_word(rng) for _ in range(num_words))
    return rng.choice((line, line, line.upper(), line.upper(), line.title(), line.capitalize()))
